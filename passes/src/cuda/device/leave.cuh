// How sums of 16 rows leave a warp: tensor cores hand each lane pairs of neighbouring columns, and what follows a product
// wants runs of P of them. The rows go by way of the warp's own corner of shared memory, which has 16 rows of SLAB floats.
// `leave` is called with the row and the column within the block of columns, and the run.
template <int SLAB, int NT, typename Leave>
LP_DEVICE void lp_leave_rows(float* slab, const float (&sum)[NT][4], Leave leave) {
    const int lane = threadIdx.x % 32;
    LP_UNROLL for (int j = 0; j < NT; ++j) {
        float* const at = slab + lane / 4 * SLAB + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sum[j][0], sum[j][1]);
        *reinterpret_cast<float2*>(at + 8 * SLAB) = make_float2(sum[j][2], sum[j][3]);
    }
    __syncwarp();
    for (int run = lane; run < 16 * (NT * 8 / P); run += 32) {
        const int row = run / (NT * 8 / P), at = run % (NT * 8 / P) * P;
        float run_sum[P];
        lp_load(slab + row * SLAB + at, P, run_sum);
        leave(row, at, run_sum);
    }
    __syncwarp();
}
