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
// The same where several warps hold sums of one part: each leaves its own in shared memory, behind each other by part, and the
// threads add them in one order.
template <int WARPS_M, int WARPS_N, int WARPS_K, int MT, int NT, typename Leave>
LP_DEVICE void lp_leave_joined(unsigned char* memory, const float (&sum)[MT][NT][4], Leave leave) {
    constexpr int PARTS = WARPS_M * WARPS_N, ROWS = MT * 16, COLS = NT * 8, SLAB = COLS + 8, RUNS = WARPS_N * COLS / P;
    const int lane = threadIdx.x % 32;
    float* const all = reinterpret_cast<float*>(memory);
    float* const mine = all + threadIdx.x / 32 * ROWS * SLAB + lane / 4 * SLAB + lane % 4 * 2;
    LP_UNROLL for (int i = 0; i < MT; ++i) {
        LP_UNROLL for (int j = 0; j < NT; ++j) {
            float* const at = mine + i * 16 * SLAB + j * 8;
            *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(at + 8 * SLAB) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
    }
    __syncthreads();
    for (int run = threadIdx.x; run < WARPS_M * ROWS * RUNS; run += 32 * PARTS * WARPS_K) {
        const int row = run / RUNS, at = run % RUNS * P, part = row / ROWS + at / COLS * WARPS_M;
        float whole[P] = {};
        LP_UNROLL for (int k = 0; k < WARPS_K; ++k) {
            float share[P];
            lp_load(all + ((k * PARTS + part) * ROWS + row % ROWS) * SLAB + at % COLS, P, share);
            LP_UNROLL for (int e = 0; e < P; ++e) whole[e] += share[e];
        }
        leave(row, at, whole);
    }
}
