// Adds the sums that the parts of the depth have left, in their order, and goes on with what follows the product.
constexpr int THREADS = 256, RUNS = (N + P - 1) / P;

LP_DEVICE void lp_join_parts(const float* parts, const Args& args) {
    const long long run = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (run >= (long long)M * RUNS) return;
    const int row = int(run / RUNS), col = int(run % RUNS) * P;
    float sum[P] = {};
    LP_UNROLL for (int s = 0; s < SPLITS; ++s) {
        float share[P];
        lp_load(parts + ((long long)s * M + row) * PART_PITCH + col, P, share);
        LP_UNROLL for (int e = 0; e < P; ++e) sum[e] += share[e];
    }
    lp_epilogue(args, row, col, sum);
}
