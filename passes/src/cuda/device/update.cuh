// AdamW on four neighbouring values of one row. The gradient is left at zero for the next step.
LP_DEVICE void lp_update(float* gradient, float* mean, float* square, float* master, Element* weight, const float* settings,
                         const float* rates, const float* scale) {
    const unsigned long long run = (unsigned long long)(blockIdx.x) * THREADS + threadIdx.x;
    if (run >= RUNS) return;
    const unsigned long long row = run / ROW_RUNS;
    // Where rows are whole runs this is known to the compiler, which else may store value by value.
    const int col = int(run % ROW_RUNS) * 4, valid = COLS % 4 == 0 ? 4 : COLS - col;
    const size_t at = row / ROWS * SLICE + row % ROWS * PITCH + col;
    const size_t held = row / ROWS * WEIGHT_SLICE + row % ROWS * WEIGHT_PITCH + col;
    // Weights in single precision are their own masters, and lie with their own pitch and slices.
    const size_t master_at = OWN_MASTER ? held : at;
    const float lr = settings[0] * rates[0], beta1 = settings[1], beta2 = settings[2], eps = settings[3];
    const float decay = settings[4] * rates[1], share1 = settings[6], share2 = settings[7];
    float g[4], m[4], v[4], w[4];
    lp_load(gradient + at, valid, g);
    lp_load(mean + at, valid, m);
    lp_load(square + at, valid, v);
    lp_load(master + master_at, valid, w);
    LP_UNROLL for (int e = 0; e < 4; ++e) {
        g[e] *= scale[1];
        m[e] = beta1 * m[e] + (1.0f - beta1) * g[e];
        v[e] = beta2 * v[e] + (1.0f - beta2) * g[e] * g[e];
        w[e] -= lr * decay * w[e] + lr * (m[e] / share1) / (sqrtf(v[e] / share2) + eps);
        g[e] = 0.0f;
    }
    lp_store(gradient + at, valid, g);
    lp_store(mean + at, valid, m);
    lp_store(square + at, valid, v);
    lp_store(master + master_at, valid, w);
    if (!OWN_MASTER) lp_store(weight + held, valid, w);
}
