// The sum of shares of squares.
LP_DEVICE void lp_total(const float* parts, float* out) {
    __shared__ float partial[32];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < PARTS; i += THREADS) sum += parts[i];
    sum = lp_block_sum<THREADS>(sum, partial);
    if (threadIdx.x == 0) out[0] = sum;
}

// The norm of all gradients together and the factor that brings it down to the limit.
LP_DEVICE void lp_clip(const float* parts, const float* settings, float* scale) {
    __shared__ float partial[32];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < PARTS; i += THREADS) sum += parts[i];
    const float norm = sqrtf(lp_block_sum<THREADS>(sum, partial)), limit = settings[5];
    if (threadIdx.x != 0) return;
    scale[0] = norm;
    scale[1] = limit > 0.0f ? fminf(1.0f, limit / (norm + 1e-6f)) : 1.0f;
}
