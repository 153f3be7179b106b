// out = epilogue(a · w^T): a is [M, K] with LDA elements between rows, w is [N, K] with LDW.
// A block computes BM x BN of the product. STAGES slices of depth BK are on their way into shared memory at any time
// (cp.async); each warp multiplies its WM x WN part with ldmatrix and mma.sync. Rows of a slice are BK elements long and
// their 16-byte pieces are exchanged by row, so that neither the copies nor ldmatrix meet bank conflicts. Weights that are
// whole numbers become bf16, exactly, on their way from shared memory to the tensor cores. WARPS_K warps share a part where rows
// are few: each multiplies its steps of every slice, and they add their sums at the end.
constexpr int THREADS = 32 * WARPS_M * WARPS_N * WARPS_K, STEPS = BK / 16 / WARPS_K;
constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8;
constexpr int LEFT = BM * BK * 2, STAGE = LEFT + BN * BK * sizeof(Weight), SLICES = (K + BK - 1) / BK, SLAB = WN + 8;

// Where piece `piece` of row `row` lies within its row of PIECES: rows that fill 128 bytes together take turns.
template <int PIECES>
LP_DEVICE int lp_exchange(int row, int piece) {
    if constexpr (PIECES >= 8) return piece ^ (row & 7);
    else return piece ^ (row / (8 / PIECES) & (PIECES - 1));
}

// Starts copying the slice at depth k0 of ROWS rows; rows from LIMIT and columns from K on become zero.
template <int ROWS, int LIMIT, int PITCH, typename T>
LP_DEVICE void lp_stage(unsigned to, const T* from, int row0, int k0) {
    constexpr int V = 16 / sizeof(T), PIECES = BK / V, STEP = THREADS / PIECES;
    static_assert(ROWS % STEP == 0, "every thread copies the same number of pieces");
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const int left = K - k0 - piece * V;
    // Whole numbers are not in the order of their columns within a piece; what is behind the last one is stored as zero.
    const int bytes = K % BK == 0 || left >= V ? 16 : left <= 0 ? 0 : sizeof(T) == 1 ? 16 : left * int(sizeof(T));
    const T* source = from + size_t(row0 + row) * PITCH + k0 + piece * V;
    const unsigned target = to + row * BK * sizeof(T) + lp_exchange<PIECES>(row, piece) * 16;
    LP_UNROLL for (int i = 0; i < ROWS / STEP; ++i) {
        const bool inside = LIMIT % ROWS == 0 || row0 + row + i * STEP < LIMIT;
        lp_copy16(target + i * STEP * BK * sizeof(T), source + size_t(i) * STEP * PITCH, inside ? bytes : 0);
    }
}

// The right factors of a step of depth 16, NT times 8 columns of the product, for this lane.
LP_DEVICE void lp_right(unsigned (&y)[NT / 2][4], const unsigned char* memory, unsigned stage, int first, int k, const bf16*) {
    const int lane = threadIdx.x % 32, row = first + lane % 8 + lane / 16 * 8;
    const unsigned from = lp_shared(memory) + stage + LEFT + row * BK * 2 + lp_exchange<BK / 8>(row, 2 * k + lane / 8 % 2) * 16;
    LP_UNROLL for (int j = 0; j < NT / 2; ++j) lp_load_matrices(y[j], from + j * 16 * BK * 2);
}
LP_DEVICE void lp_right(unsigned (&y)[NT / 2][4], const unsigned char* memory, unsigned stage, int first, int k, const signed char*) {
    const int lane = threadIdx.x % 32, row = first + lane / 4;
    const unsigned char* from = memory + stage + LEFT + row * BK + lp_exchange<BK / 16>(row, k) * 16 + lane % 4 * 4;
    LP_UNROLL for (int j = 0; j < NT; ++j) {
        float v[4];
        lp_spread(*reinterpret_cast<const unsigned*>(from + j * 8 * BK), v, (const signed char*)nullptr);
        y[j / 2][j % 2 * 2] = lp_pack(v[0], v[1]), y[j / 2][j % 2 * 2 + 1] = lp_pack(v[2], v[3]);
    }
}

LP_DEVICE void lp_gemm(const bf16* a, const Weight* w, const Args& args) {
    LP_DYNAMIC_SHARED(memory);
    const unsigned stages = lp_shared(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M % WARPS_N * WN, first_step = warp / (WARPS_M * WARPS_N) * STEPS;
    int row0, col0;
    lp_tile(blockIdx.x, row0, col0);

    float sum[MT][NT][4] = {};
    LP_UNROLL for (int s = 0; s < STAGES - 1; ++s) {
        if (s < SLICES) {
            lp_stage<BM, M, LDA>(stages + s * STAGE, a, row0, s * BK);
            lp_stage<BN, N, LDW>(stages + s * STAGE + LEFT, w, col0, s * BK);
        }
        lp_copy_commit();
    }
    // This lane's rows for ldmatrix: 16 rows further down their pieces are exchanged in the same way.
    const int left_row = warp_m + lane % 16;
    for (int slice = 0; slice < SLICES; ++slice) {
        lp_copy_wait<STAGES - 2>();
        __syncthreads();
        if (slice + STAGES - 1 < SLICES) {
            const unsigned next = stages + (slice + STAGES - 1) % STAGES * STAGE;
            lp_stage<BM, M, LDA>(next, a, row0, (slice + STAGES - 1) * BK);
            lp_stage<BN, N, LDW>(next + LEFT, w, col0, (slice + STAGES - 1) * BK);
        }
        lp_copy_commit();
        const unsigned stage = slice % STAGES * STAGE, left = stages + stage + left_row * BK * 2;
        LP_UNROLL for (int step = 0; step < STEPS; ++step) {
            const int k = first_step + step;
            unsigned x[MT][4], y[NT / 2][4];
            const unsigned piece = lp_exchange<BK / 8>(left_row, 2 * k + lane / 16) * 16;
            LP_UNROLL for (int i = 0; i < MT; ++i) lp_load_matrices(x[i], left + piece + i * 16 * BK * 2);
            lp_right(y, memory, stage, warp_n, k, w);
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                LP_UNROLL for (int j = 0; j < NT; ++j) lp_mma(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
    lp_copy_wait<0>();
    __syncthreads();
    if constexpr (WARPS_K > 1) return lp_leave_joined<WARPS_M, WARPS_N, WARPS_K>(memory, sum, [&](int slab_row, int at, const float (&run)[P]) {
        const int row = row0 + slab_row, col = col0 + at;
        if (row < M && col < N) lp_epilogue(args, row, col, run);
    });

    float* const slab = reinterpret_cast<float*>(memory) + warp * 16 * SLAB;
    LP_UNROLL for (int i = 0; i < MT; ++i) {
        lp_leave_rows<SLAB>(slab, sum[i], [&](int slab_row, int at, const float (&run)[P]) {
            const int row = row0 + warp_m + i * 16 + slab_row, col = col0 + warp_n + at;
            if (row < M && col < N) lp_epilogue(args, row, col, run);
        });
    }
}
