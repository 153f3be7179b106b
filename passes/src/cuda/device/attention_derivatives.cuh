// What kernels of attention's derivatives share: products of rows of a head in shared memory, and rows that leave. WARPS of 16
// rows each make a block's rows.
constexpr int ROWS = WARPS * 16, RATIO = HEADS / KV_HEADS;

// sum += 16 rows at `left` times NT * 8 rows at `right`, over the width of a head.
template <int NT>
LP_DEVICE void lp_rows_by_rows(unsigned left, unsigned right, float (&sum)[NT][4]) {
    LP_UNROLL for (int c = 0; c < HD / 16; ++c) {
        unsigned x[4];
        lp_load_matrices(x, left + c * 32);
        LP_UNROLL for (int j = 0; j < NT / 2; ++j) {
            unsigned y[4];
            lp_load_matrices(y, right + (j * 16 * PITCH + c * 16) * 2);
            lp_mma(sum[2 * j], x, y[0], y[1]);
            lp_mma(sum[2 * j + 1], x, y[2], y[3]);
        }
    }
}

// sum += p times the NT * 8 rows at `right`, DT * 8 of their columns.
template <int NT, int DT>
LP_DEVICE void lp_weigh_rows(const float (&p)[NT][4], unsigned right, float (&sum)[DT][4]) {
    LP_UNROLL for (int c = 0; c < NT / 2; ++c) {
        unsigned x[4];
        LP_UNROLL for (int r = 0; r < 4; ++r) x[r] = lp_pack(p[2 * c + r / 2][r % 2 * 2], p[2 * c + r / 2][r % 2 * 2 + 1]);
        LP_UNROLL for (int j = 0; j < DT / 2; ++j) {
            unsigned y[4];
            lp_load_transposed(y, right + (c * 16 * PITCH + j * 16) * 2);
            lp_mma(sum[2 * j], x, y[0], y[1]);
            lp_mma(sum[2 * j + 1], x, y[2], y[3]);
        }
    }
}

LP_DEVICE bool lp_hidden(int query, int key) {
    return key >= L || query >= S || (CAUSAL && key > query) || (WINDOW > 0 && key <= query - WINDOW);
}
LP_DEVICE float lp_scaled(float x, float slope, int query, int key) {
    return ALIBI ? fmaf(x, SCORE_SCALE, slope * float(key - query)) : x * SCORE_SCALE;
}

// Stores a warp's 16 rows, DT * 8 columns from `first`, by way of its own rows of shared memory at `to`.
template <int DT, int ROW_PITCH>
LP_DEVICE void lp_leave(const float (&sum)[DT][4], bf16* to, bf16* out, int row0, int limit, int first) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    LP_UNROLL for (int h = 0; h < 2; ++h) {
        bf16* const row = to + (warp * 16 + lane / 4 + h * 8) * PITCH + first + lane % 4 * 2;
        LP_UNROLL for (int j = 0; j < DT; ++j) *reinterpret_cast<unsigned*>(row + j * 8) = lp_pack(sum[j][2 * h], sum[j][2 * h + 1]);
    }
    __syncwarp();
    for (int i = lane; i < 16 * DT; i += 32) {
        const int row = warp * 16 + i / DT, col = first + i % DT * 8;
        if (row0 + row < limit && col < D) {
            *reinterpret_cast<uint4*>(out + size_t(row0 + row) * ROW_PITCH + col) = *reinterpret_cast<const uint4*>(to + row * PITCH + col);
        }
    }
}
