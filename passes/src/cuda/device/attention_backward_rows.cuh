// The same query by query and key by key, for single precision and heads of any width: slow, and in a fixed order.
constexpr int THREADS = 128, RATIO = HEADS / KV_HEADS, EACH = (D + THREADS - 1) / THREADS;

LP_DEVICE bool lp_hidden(int query, int key) {
    return (CAUSAL && key > query) || (WINDOW > 0 && key <= query - WINDOW);
}
LP_DEVICE float lp_dot(const Element* a, const Element* b) {
    float sum = 0.0f;
    for (int d = 0; d < D; ++d) sum = fmaf(lp_to_float(a[d]), lp_to_float(b[d]), sum);
    return sum;
}
LP_DEVICE float lp_score(const Element* q, const Element* k, int head, int query, int key) {
    const float x = lp_dot(q, k) * SCORE_SCALE;
    return ALIBI ? fmaf(lp_slope[head], float(key - query), x) : x;
}

LP_DEVICE void lp_queries(const Element* q, const Element* k, const Element* v, const Element* dy, Element* dq, float* statistics) {
    __shared__ float partial[32], factor[THREADS];
    const int row = blockIdx.x, head = blockIdx.y, batch = row / S, query = row % S;
    q += size_t(row) * Q_PITCH + head * D, dy += size_t(row) * Q_PITCH + head * D, dq += size_t(row) * Q_PITCH + head * D;
    k += size_t(batch) * L * KV_PITCH + head / RATIO * D, v += size_t(batch) * L * KV_PITCH + head / RATIO * D;
    const int end = CAUSAL ? query + 1 : L;
    float most = -LP_INFINITY, weight = 0.0f, share = 0.0f;
    for (int key = threadIdx.x; key < end; key += THREADS) {
        if (!lp_hidden(query, key)) most = fmaxf(most, lp_score(q, k + size_t(key) * KV_PITCH, head, query, key));
    }
    most = lp_block_max<THREADS>(most, partial);
    for (int key = threadIdx.x; key < end; key += THREADS) {
        if (lp_hidden(query, key)) continue;
        const float p = lp_exp2(lp_score(q, k + size_t(key) * KV_PITCH, head, query, key) - most);
        weight += p, share += p * lp_dot(dy, v + size_t(key) * KV_PITCH);
    }
    weight = __fdividef(1.0f, lp_block_sum<THREADS>(weight, partial));
    share = lp_block_sum<THREADS>(share, partial) * weight;
    if (threadIdx.x == 0) {
        float* const mine = statistics + ((size_t(batch) * HEADS + head) * S + query) * 4;
        mine[0] = most, mine[1] = weight, mine[2] = share;
    }
    float sum[EACH] = {};
    for (int key0 = 0; key0 < end; key0 += THREADS) {
        const int key = key0 + threadIdx.x;
        __syncthreads();
        float ds = 0.0f;
        if (key < end && !lp_hidden(query, key)) {
            const float p = lp_exp2(lp_score(q, k + size_t(key) * KV_PITCH, head, query, key) - most) * weight;
            ds = p * (lp_dot(dy, v + size_t(key) * KV_PITCH) - share) * SCALE;
        }
        factor[threadIdx.x] = ds;
        __syncthreads();
        for (int i = 0; i < THREADS && key0 + i < end; ++i) {
            LP_UNROLL for (int e = 0; e < EACH; ++e) {
                const int d = e * THREADS + threadIdx.x;
                if (d < D) sum[e] = fmaf(factor[i], lp_to_float(k[size_t(key0 + i) * KV_PITCH + d]), sum[e]);
            }
        }
    }
    LP_UNROLL for (int e = 0; e < EACH; ++e) {
        const int d = e * THREADS + threadIdx.x;
        if (d < D) lp_from_float(sum[e], dq[d]);
    }
}

LP_DEVICE void lp_keys(const Element* q, const Element* k, const Element* v, const Element* dy, Element* dk, Element* dv, const float* statistics) {
    __shared__ float weight[THREADS], factor[THREADS];
    const int row = blockIdx.x, kv_head = blockIdx.y, batch = row / L, key = row % L;
    const size_t mine = size_t(row) * KV_PITCH + kv_head * D;
    float key_sum[EACH] = {}, value_sum[EACH] = {};
    for (int g = 0; g < RATIO; ++g) {
        const int head = kv_head * RATIO + g;
        const Element* const my_q = q + size_t(batch) * S * Q_PITCH + head * D;
        const Element* const my_dy = dy + size_t(batch) * S * Q_PITCH + head * D;
        for (int q0 = CAUSAL ? key : 0; q0 < S; q0 += THREADS) {
            const int query = q0 + threadIdx.x;
            __syncthreads();
            float p = 0.0f, ds = 0.0f;
            if (query < S && !lp_hidden(query, key)) {
                const float* const known = statistics + ((size_t(batch) * HEADS + head) * S + query) * 4;
                p = lp_exp2(lp_score(my_q + size_t(query) * Q_PITCH, k + mine, head, query, key) - known[0]) * known[1];
                ds = p * (lp_dot(my_dy + size_t(query) * Q_PITCH, v + mine) - known[2]) * SCALE;
            }
            weight[threadIdx.x] = p, factor[threadIdx.x] = ds;
            __syncthreads();
            for (int i = 0; i < THREADS && q0 + i < S; ++i) {
                LP_UNROLL for (int e = 0; e < EACH; ++e) {
                    const int d = e * THREADS + threadIdx.x;
                    if (d < D) {
                        value_sum[e] = fmaf(weight[i], lp_to_float(my_dy[size_t(q0 + i) * Q_PITCH + d]), value_sum[e]);
                        key_sum[e] = fmaf(factor[i], lp_to_float(my_q[size_t(q0 + i) * Q_PITCH + d]), key_sum[e]);
                    }
                }
            }
        }
    }
    LP_UNROLL for (int e = 0; e < EACH; ++e) {
        const int d = e * THREADS + threadIdx.x;
        if (d < D) lp_from_float(key_sum[e], dk[mine + d]), lp_from_float(value_sum[e], dv[mine + d]);
    }
}
