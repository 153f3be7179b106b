// The derivatives of softmax(q · k^T) · v by queries, keys and values, with no matrix of scores in memory. lp_queries walks
// over the keys of 64 queries twice: for their statistics (largest score, inverse sum, Σ p dp), then for dq. lp_keys walks over
// the queries of 64 keys and has their scores again from the statistics; where heads share keys it adds them up in their
// order. Nothing is added through memory, so every run gives the same bits.
LP_DEVICE void lp_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* dy, bf16* dq, float* statistics) {
    LP_DYNAMIC_SHARED(memory);
    constexpr int KT = BKV / 8, DT = HD / 8;
    const unsigned to_q = lp_shared(memory), to_dy = to_q + ROWS * PITCH * 2, to_k = to_dy + ROWS * PITCH * 2, to_v = to_k + BKV * PITCH * 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int q0 = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, batch = blockIdx.z;
    const int end = CAUSAL && q0 + ROWS < L ? q0 + ROWS : L, oldest = q0 - WINDOW + 1;
    const int begin = WINDOW > 0 && oldest > 0 ? oldest / BKV * BKV : 0;
    const size_t at_q = size_t(batch) * S * Q_PITCH + head * D, at_k = size_t(batch) * L * KV_PITCH + head / RATIO * D;
    const float slope = ALIBI ? lp_slope[head] : 0.0f;
    lp_stage<ROWS, Q_PITCH>(to_q, q + at_q, q0, S);
    lp_stage<ROWS, Q_PITCH>(to_dy, dy + at_q, q0, S);
    const unsigned mine = ((warp * 16 + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned others = ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned turned = ((lane % 8 + lane / 8 % 2 * 8) * PITCH + lane / 16 * 8) * 2;
    const int query = q0 + warp * 16 + lane / 4;

    float most[2] = {-LP_INFINITY, -LP_INFINITY}, weight[2] = {}, share[2] = {};
    for (int key0 = begin; key0 < end; key0 += BKV) {
        __syncthreads();
        lp_stage<BKV, KV_PITCH>(to_k, k + at_k, key0, L);
        lp_stage<BKV, KV_PITCH>(to_v, v + at_k, key0, L);
        lp_copy_commit();
        lp_copy_wait<0>();
        __syncthreads();
        float score[KT][4] = {}, dp[KT][4] = {};
        lp_rows_by_rows(to_q + mine, to_k + others, score);
        lp_rows_by_rows(to_dy + mine, to_v + others, dp);
        LP_UNROLL for (int h = 0; h < 2; ++h) {
            float top = most[h];
            LP_UNROLL for (int j = 0; j < KT; ++j) {
                LP_UNROLL for (int e = 0; e < 2; ++e) {
                    const int key = key0 + j * 8 + lane % 4 * 2 + e;
                    float& x = score[j][2 * h + e];
                    x = lp_hidden(query + h * 8, key) ? -LP_INFINITY : lp_scaled(x, slope, query + h * 8, key);
                    top = fmaxf(top, x);
                }
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float base = top == -LP_INFINITY ? 0.0f : top, fade = lp_exp2(most[h] - base);
            most[h] = top;
            weight[h] *= fade, share[h] *= fade;
            LP_UNROLL for (int j = 0; j < KT; ++j) {
                LP_UNROLL for (int e = 0; e < 2; ++e) {
                    const float p = lp_exp2(score[j][2 * h + e] - base);
                    weight[h] += p, share[h] = fmaf(p, dp[j][2 * h + e], share[h]);
                }
            }
        }
    }
    LP_UNROLL for (int h = 0; h < 2; ++h) {
        LP_UNROLL for (int lanes = 1; lanes < 4; lanes *= 2) {
            weight[h] += __shfl_xor_sync(0xffffffffu, weight[h], lanes);
            share[h] += __shfl_xor_sync(0xffffffffu, share[h], lanes);
        }
        weight[h] = weight[h] > 0.0f ? __fdividef(1.0f, weight[h]) : 0.0f;
        share[h] *= weight[h];
        most[h] = most[h] == -LP_INFINITY ? 0.0f : most[h];
        if (lane % 4 == 0 && query + h * 8 < S) {
            float* const row = statistics + ((size_t(batch) * HEADS + head) * S + query + h * 8) * 4;
            row[0] = most[h], row[1] = weight[h], row[2] = share[h];
        }
    }

    float sum[DT][4] = {};
    for (int key0 = begin; key0 < end; key0 += BKV) {
        __syncthreads();
        lp_stage<BKV, KV_PITCH>(to_k, k + at_k, key0, L);
        lp_stage<BKV, KV_PITCH>(to_v, v + at_k, key0, L);
        lp_copy_commit();
        lp_copy_wait<0>();
        __syncthreads();
        float score[KT][4] = {}, dp[KT][4] = {};
        lp_rows_by_rows(to_q + mine, to_k + others, score);
        lp_rows_by_rows(to_dy + mine, to_v + others, dp);
        LP_UNROLL for (int j = 0; j < KT; ++j) {
            LP_UNROLL for (int i = 0; i < 4; ++i) {
                const int key = key0 + j * 8 + lane % 4 * 2 + i % 2, row = query + i / 2 * 8;
                const float p = lp_exp2(lp_scaled(score[j][i], slope, row, key) - most[i / 2]) * weight[i / 2];
                score[j][i] = lp_hidden(row, key) ? 0.0f : p * (dp[j][i] - share[i / 2]) * SCALE;
            }
        }
        lp_weigh_rows(score, to_k + turned, sum);
    }
    __syncthreads();
    lp_leave<DT, Q_PITCH>(sum, reinterpret_cast<bf16*>(memory), dq + at_q, q0, S, 0);
}

LP_DEVICE void lp_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* dy, bf16* dk, bf16* dv, const float* statistics) {
    LP_DYNAMIC_SHARED(memory);
    __shared__ float known[BQ][4];
    constexpr int QT = BQ / 8, DT = HD / 8 / PARTS;
    const unsigned to_k = lp_shared(memory), to_v = to_k + ROWS * PITCH * 2, to_q = to_v + ROWS * PITCH * 2, to_dy = to_q + BQ * PITCH * 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int key0 = blockIdx.x * ROWS, kv_head = blockIdx.y, batch = blockIdx.z / PARTS, part = blockIdx.z % PARTS * DT * 8;
    const size_t at_k = size_t(batch) * L * KV_PITCH + kv_head * D;
    const int first = CAUSAL ? key0 / BQ * BQ : 0, past = key0 + ROWS - 1 + WINDOW;
    const int last = WINDOW > 0 && past < S ? past : S;
    lp_stage<ROWS, KV_PITCH>(to_k, k + at_k, key0, L);
    lp_stage<ROWS, KV_PITCH>(to_v, v + at_k, key0, L);
    const unsigned mine = ((warp * 16 + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned others = ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned turned = ((lane % 8 + lane / 8 % 2 * 8) * PITCH + lane / 16 * 8 + part) * 2;
    const int key = key0 + warp * 16 + lane / 4;

    float key_sum[DT][4] = {}, value_sum[DT][4] = {};
    for (int g = 0; g < RATIO; ++g) {
        const int head = kv_head * RATIO + g;
        const size_t at_q = size_t(batch) * S * Q_PITCH + head * D;
        const float slope = ALIBI ? lp_slope[head] : 0.0f;
        for (int q0 = first; q0 < last; q0 += BQ) {
            __syncthreads();
            lp_stage<BQ, Q_PITCH>(to_q, q + at_q, q0, S);
            lp_stage<BQ, Q_PITCH>(to_dy, dy + at_q, q0, S);
            lp_copy_commit();
            for (int i = threadIdx.x; i < BQ * 3; i += THREADS) {
                const int row = q0 + i / 3;
                known[i / 3][i % 3] = row < S ? statistics[((size_t(batch) * HEADS + head) * S + row) * 4 + i % 3] : 0.0f;
            }
            lp_copy_wait<0>();
            __syncthreads();
            float score[QT][4] = {}, dp[QT][4] = {};
            lp_rows_by_rows(to_k + mine, to_q + others, score);
            lp_rows_by_rows(to_v + mine, to_dy + others, dp);
            LP_UNROLL for (int j = 0; j < QT; ++j) {
                LP_UNROLL for (int i = 0; i < 4; ++i) {
                    const int at = j * 8 + lane % 4 * 2 + i % 2, query = q0 + at, row = key + i / 2 * 8;
                    const bool hidden = lp_hidden(query, row);
                    const float p = hidden ? 0.0f : lp_exp2(lp_scaled(score[j][i], slope, query, row) - known[at][0]) * known[at][1];
                    score[j][i] = p;
                    dp[j][i] = p * (dp[j][i] - known[at][2]) * SCALE;
                }
            }
            lp_weigh_rows(score, to_dy + turned, value_sum);
            lp_weigh_rows(dp, to_q + turned, key_sum);
        }
    }
    __syncthreads();
    lp_leave<DT, KV_PITCH>(key_sum, reinterpret_cast<bf16*>(memory), dk + at_k, key0, L, part);
    lp_leave<DT, KV_PITCH>(value_sum, reinterpret_cast<bf16*>(memory) + ROWS * PITCH, dv + at_k, key0, L, part);
}
