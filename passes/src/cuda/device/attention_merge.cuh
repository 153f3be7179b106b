// Joins the parts that the blocks of one query and head have left: weighted values over the sum of weights.
LP_DEVICE void lp_attention_merge(const float* parts, Element* out) {
    const int row = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
    const float* const mine = parts + size_t(blockIdx.x) * SPLITS * PART_PITCH;
    float top = -LP_INFINITY, whole = 0.0f;
    for (int s = 0; s < SPLITS; ++s) top = fmaxf(top, mine[s * PART_PITCH + D]);
    const float base = top == -LP_INFINITY ? 0.0f : top;
    for (int s = 0; s < SPLITS; ++s) whole += mine[s * PART_PITCH + D + 1] * lp_exp2(mine[s * PART_PITCH + D] - base);
    for (int d = threadIdx.x; d < D; d += THREADS) {
        float x = 0.0f;
        for (int s = 0; s < SPLITS; ++s) x += mine[s * PART_PITCH + d] * lp_exp2(mine[s * PART_PITCH + D] - base);
        lp_from_float(whole > 0.0f ? __fdividef(x, whole) : 0.0f, out[size_t(row) * Q_PITCH + head * D + d]);
    }
}
