// Copies a matrix out of another: from a row and a column on, columns in parts that lie one behind another, zeros elsewhere.
LP_DEVICE void lp_arrange(const Element* x, Element* out) {
    const unsigned long long run = (unsigned long long)(blockIdx.x) * THREADS + threadIdx.x;
    if (run >= RUNS) return;
    const int row = int(run / ROW_RUNS), col = int(run % ROW_RUNS) * W;
    const int from = row + FIRST_ROW, source = col + FIRST_COL;
    const bool inside = from >= 0 && from < X_ROWS && source >= 0 && source < X_COLS;
    const int part = inside ? source / PART : 0, within = inside ? source - part * PART : 0;
    const int whole = X_COLS - source, rest = PART - within, valid = whole < rest ? whole : rest;
    float v[W];
    lp_load(x + part * PART_STRIDE + size_t(inside ? from : 0) * X_PITCH + within, inside ? valid : 0, v);
    if (ADDS) {
        float old[W];
        lp_load(out + size_t(row) * PITCH + col, COLS - col, old);
        LP_UNROLL for (int e = 0; e < W; ++e) v[e] += old[e];
    }
    lp_store(out + size_t(row) * PITCH + col, COLS - col, v);
}
