// Attention of single queries, for decoding and for single precision: a block handles G query heads that share keys, for one
// query and one of SPLITS parts of the keys. LANES lanes hold one key; every group of lanes walks over its own keys with its
// own maximum, sum and weighted values, which are merged at the end. With several parts the block leaves its share in
// `parts`: D weighted values, their maximum and their sum, all before division, for lp_attention_merge.
constexpr int WARPS = 4, THREADS = 32 * WARPS, STREAMS = WARPS * (32 / LANES), AHEAD = 4, E = CHUNKS * W;
constexpr int RATIO = HEADS / KV_HEADS, GROUPS = (RATIO + G - 1) / G;

LP_DEVICE void lp_load_head(const Element* from, int lane, bool inside, float (&x)[E]) {
    LP_UNROLL for (int c = 0; c < CHUNKS; ++c) {
        const int at = (c * LANES + lane) * W;
        float part[W] = {};
        if (inside && at < D) lp_load(from + at, W, part);
        LP_UNROLL for (int e = 0; e < W; ++e) x[c * W + e] = part[e];
    }
}

// Adds another walk's share to one's own.
LP_DEVICE void lp_merge(float& most, float& weight, float (&sum)[E], float other_most, float other_weight, const float (&other)[E]) {
    const float top = fmaxf(most, other_most), base = top == -LP_INFINITY ? 0.0f : top;
    const float mine = lp_exp2(most - base), its = lp_exp2(other_most - base);
    most = top;
    weight = weight * mine + other_weight * its;
    LP_UNROLL for (int e = 0; e < E; ++e) sum[e] = sum[e] * mine + other[e] * its;
}

LP_DEVICE void lp_attention_rows(const Element* q, const Element* k, const Element* v, Element* out, float* parts, int cached) {
    __shared__ float part_most[WARPS][G], part_weight[WARPS][G], part_sum[WARPS][G][LANES * E];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES, stream = threadIdx.x / LANES;
    const int split = blockIdx.x % SPLITS, row = blockIdx.x / SPLITS, batch = row / S, position = cached + row % S;
    const int kv_head = blockIdx.y / GROUPS, head0 = kv_head * RATIO + blockIdx.y % GROUPS * G;
    const int heads = RATIO - blockIdx.y % GROUPS * G < G ? RATIO - blockIdx.y % GROUPS * G : G;
    const int total = CAUSAL || CACHED ? cached + S : L;
    const int end = CAUSAL ? position + 1 : total;
    const int begin = WINDOW > 0 && position - WINDOW + 1 > 0 ? position - WINDOW + 1 : 0;
    const int share = (end - begin + SPLITS - 1) / SPLITS, first = begin + split * share;
    const int last = first + share < end ? first + share : end;
    k += size_t(batch) * L * KV_PITCH + kv_head * D;
    v += size_t(batch) * L * KV_PITCH + kv_head * D;

    float query[G][E], sum[G][E] = {}, most[G], weight[G] = {};
    LP_UNROLL for (int g = 0; g < G; ++g) {
        lp_load_head(q + size_t(row) * Q_PITCH + (head0 + g) * D, lane, g < heads, query[g]);
        most[g] = -LP_INFINITY;
    }
    for (int key0 = first; key0 < last; key0 += STREAMS * AHEAD) {
        float key[AHEAD][E], value[AHEAD][E];
        LP_UNROLL for (int u = 0; u < AHEAD; ++u) {
            const int at = key0 + u * STREAMS + stream;
            lp_load_head(k + size_t(at) * KV_PITCH, lane, at < last, key[u]);
            lp_load_head(v + size_t(at) * KV_PITCH, lane, at < last, value[u]);
        }
        LP_UNROLL for (int g = 0; g < G; ++g) {
            float score[AHEAD], top = most[g];
            LP_UNROLL for (int u = 0; u < AHEAD; ++u) {
                const int at = key0 + u * STREAMS + stream;
                float dot = 0.0f;
                LP_UNROLL for (int e = 0; e < E; ++e) dot = fmaf(query[g][e], key[u][e], dot);
                LP_UNROLL for (int lanes = LANES / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, lanes);
                dot *= SCORE_SCALE;
                if (ALIBI) dot = fmaf(lp_slope[g < heads ? head0 + g : head0], float(at - position), dot);
                score[u] = at < last ? dot : -LP_INFINITY;
                top = fmaxf(top, score[u]);
            }
            const float base = top == -LP_INFINITY ? 0.0f : top, fade = lp_exp2(most[g] - base);
            most[g] = top;
            weight[g] *= fade;
            LP_UNROLL for (int e = 0; e < E; ++e) sum[g][e] *= fade;
            LP_UNROLL for (int u = 0; u < AHEAD; ++u) {
                const float p = lp_exp2(score[u] - base);
                weight[g] += p;
                LP_UNROLL for (int e = 0; e < E; ++e) sum[g][e] = fmaf(p, value[u][e], sum[g][e]);
            }
        }
    }
    LP_UNROLL for (int g = 0; g < G; ++g) {
        LP_UNROLL for (int lanes = LANES; lanes < 32; lanes *= 2) {
            float other[E];
            LP_UNROLL for (int e = 0; e < E; ++e) other[e] = __shfl_xor_sync(0xffffffffu, sum[g][e], lanes);
            const float other_most = __shfl_xor_sync(0xffffffffu, most[g], lanes);
            const float other_weight = __shfl_xor_sync(0xffffffffu, weight[g], lanes);
            lp_merge(most[g], weight[g], sum[g], other_most, other_weight, other);
        }
        if (threadIdx.x % 32 < LANES) {
            if (lane == 0) part_most[warp][g] = most[g], part_weight[warp][g] = weight[g];
            LP_UNROLL for (int c = 0; c < CHUNKS; ++c) {
                LP_UNROLL for (int e = 0; e < W; ++e) part_sum[warp][g][(c * LANES + lane) * W + e] = sum[g][c * W + e];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * D; i += THREADS) {
        const int g = i / D, d = i % D;
        float top = -LP_INFINITY, whole = 0.0f, x = 0.0f;
        LP_UNROLL for (int w = 0; w < WARPS; ++w) top = fmaxf(top, part_most[w][g]);
        const float base = top == -LP_INFINITY ? 0.0f : top;
        LP_UNROLL for (int w = 0; w < WARPS; ++w) {
            const float share_of = lp_exp2(part_most[w][g] - base);
            whole += part_weight[w][g] * share_of;
            x += part_sum[w][g][d] * share_of;
        }
        if (SPLITS == 1) {
            lp_from_float(whole > 0.0f ? __fdividef(x, whole) : 0.0f, out[size_t(row) * Q_PITCH + (head0 + g) * D + d]);
        } else {
            float* const part = parts + ((size_t(row) * HEADS + head0 + g) * SPLITS + split) * PART_PITCH;
            part[d] = x;
            if (d == 0) part[D] = top, part[D + 1] = whole;
        }
    }
}
