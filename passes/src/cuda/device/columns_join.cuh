// Adds the blocks' shares of each column in their order.
LP_DEVICE void lp_columns_join(const float* parts, Out* out) {
    const int col = blockIdx.x * THREADS + threadIdx.x;
    if (col >= COLS) return;
    float sum = ADDS ? lp_to_float(out[col]) : 0.0f;
    for (int block = 0; block < BLOCKS; ++block) sum += parts[size_t(block) * PART_PITCH + col];
    lp_from_float(sum, out[col]);
}
