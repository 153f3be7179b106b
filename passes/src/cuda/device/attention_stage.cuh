// Blocks of queries and keys in shared memory, for some warps: rows are eight elements longer than a head is wide, so that
// ldmatrix meets no bank conflicts.
constexpr int THREADS = 32 * WARPS, PITCH = HD + 8, PIECES = HD / 8;

// Starts copying ROWS rows of D columns; rows from `limit` and columns from D become zero.
// A thread keeps its piece and walks down the rows by equal steps; where the pieces of a row are no power of two some threads
// have none.
template <int ROWS, int ROW_PITCH>
LP_DEVICE void lp_stage(unsigned to, const bf16* from, int row0, int limit) {
    constexpr int SLOTS = PIECES <= 2 ? 2 : PIECES <= 4 ? 4 : PIECES <= 8 ? 8 : PIECES <= 16 ? 16 : 32, STEP = THREADS / SLOTS;
    const int row = threadIdx.x / SLOTS, piece = threadIdx.x % SLOTS;
    const bf16* const source = from + size_t(row0 + row) * ROW_PITCH + piece * 8;
    const unsigned target = to + (row * PITCH + piece * 8) * 2;
    if (SLOTS == PIECES || piece < PIECES) {
        LP_UNROLL for (int i = 0; i < (ROWS + STEP - 1) / STEP; ++i) {
            const bool inside = row0 + row + i * STEP < limit && piece * 8 < D;
            if (ROWS % STEP != 0 && row + i * STEP >= ROWS) continue;
            lp_copy16(target + i * STEP * PITCH * 2, source + size_t(i) * STEP * ROW_PITCH, inside ? 16 : 0);
        }
    }
}

