// How many labels count, for every thread of the block: given where others count too.
LP_DEVICE float lp_counted(const int* labels, const float* given, float* partial) {
    if (given) return given[0];
    float mine = 0.0f;
    for (int i = threadIdx.x; i < ROWS; i += THREADS) mine += labels[i] >= 0 ? 1.0f : 0.0f;
    return lp_block_sum<THREADS>(mine, partial);
}

// Largest logit of a row and the sum of exponentials below it.
LP_DEVICE void lp_row(const Element* logits, float* partial, float& top, float& sum) {
    top = -LP_INFINITY;
    for (int col = threadIdx.x * W; col < COLS; col += THREADS * W) {
        float v[W];
        lp_load(logits + col, COLS - col, v);
        LP_UNROLL for (int e = 0; e < W; ++e) top = col + e < COLS ? fmaxf(top, v[e]) : top;
    }
    top = lp_block_max<THREADS>(top, partial);
    sum = 0.0f;
    for (int col = threadIdx.x * W; col < COLS; col += THREADS * W) {
        float v[W];
        lp_load(logits + col, COLS - col, v);
        LP_UNROLL for (int e = 0; e < W; ++e) {
            if (col + e < COLS) sum += lp_exp2((v[e] - top) * 1.4426950408889634f);
        }
    }
    sum = lp_block_sum<THREADS>(sum, partial);
}

// Cross entropy of one row, zero where the label does not count.
LP_DEVICE void lp_loss_rows(const Element* logits, const int* labels, float* parts) {
    __shared__ float partial[32];
    const int row = blockIdx.x, label = labels[row];
    if (label < 0) {
        if (threadIdx.x == 0) parts[row] = 0.0f;
        return;
    }
    float top, sum;
    lp_row(logits + size_t(row) * PITCH, partial, top, sum);
    if (threadIdx.x == 0) parts[row] = logf(sum) + top - lp_to_float(logits[size_t(row) * PITCH + label]);
}

// Their mean over the labels that count.
LP_DEVICE void lp_loss_mean(const float* parts, const int* labels, const float* given, float* out) {
    __shared__ float partial[32];
    const float counted = lp_counted(labels, given, partial);
    float sum = 0.0f;
    for (int row = threadIdx.x; row < ROWS; row += THREADS) sum += parts[row];
    sum = lp_block_sum<THREADS>(sum, partial);
    // Where others count too this is a part of the mean, added to those before.
    if (threadIdx.x == 0) out[0] = (given ? out[0] : 0.0f) + (counted > 0.0f ? sum / counted : 0.0f);
}

// Derivative of the mean by one row of logits, times FACTOR.
LP_DEVICE void lp_loss_dx(const Element* logits, const int* labels, const float* given, Element* out) {
    __shared__ float partial[32];
    const int row = blockIdx.x, label = labels[row];
    const float counted = lp_counted(labels, given, partial);
    logits += size_t(row) * PITCH, out += size_t(row) * PITCH;
    float top = 0.0f, sum = 1.0f;
    if (label >= 0) lp_row(logits, partial, top, sum);
    const float weight = label >= 0 ? FACTOR / counted : 0.0f;
    for (int col = threadIdx.x * W; col < COLS; col += THREADS * W) {
        float v[W];
        lp_load(logits + col, COLS - col, v);
        LP_UNROLL for (int e = 0; e < W; ++e) {
            const float p = lp_exp2((v[e] - top) * 1.4426950408889634f) / sum;
            v[e] = label >= 0 ? (p - (col + e == label ? 1.0f : 0.0f)) * weight : 0.0f;
        }
        lp_store(out + col, COLS - col, v);
    }
}
