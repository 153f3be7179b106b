// Tiles are visited in groups of GROUP rows of tiles, so that blocks that run together share slices in the L2 cache.
constexpr int TILES_M = (M + BM - 1) / BM, TILES_N = (N + BN - 1) / BN, GROUP = 8;

LP_DEVICE void lp_tile(int tile, int& row0, int& col0) {
    const int in_group = tile % (GROUP * TILES_N), first = tile / (GROUP * TILES_N) * GROUP;
    const int height = TILES_M - first < GROUP ? TILES_M - first : GROUP;
    row0 = (first + in_group % height) * BM, col0 = in_group / height * BN;
}
