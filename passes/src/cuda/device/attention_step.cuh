// What attention does with the scores of 16 rows and a block of keys, as tensor cores leave them: a lane has pairs of
// neighbouring columns of row lane / 4 and of the one eight below it. Each row keeps its maximum and its sum (online softmax in
// powers of two); scores become weights, and what was weighed before fades.

// Whether keys from key0 on are hidden from some of 16 rows from `position` on, so that each has to be asked for. Every key of
// a causal row lies before the end, so only the other rows have to look at that.
template <int BKV, int ROWS>
LP_DEVICE bool lp_edge(int key0, int position, int total) {
    return (!CAUSAL && key0 + BKV > total) || (CAUSAL && key0 + BKV - 1 > position) || (WINDOW > 0 && key0 <= position + ROWS - 1 - WINDOW);
}

template <int KT, int DT>
LP_DEVICE void lp_weigh(float (&score)[KT][4], float (&sum)[DT][4], float (&most)[2], float (&weight)[2], int key0, int position,
                        bool edge, int total, int head) {
    const int lane = threadIdx.x % 32;
    LP_UNROLL for (int h = 0; h < 2; ++h) {
        // How far this lane's first key is ahead of the row; its others are constants further on.
        const int ahead = key0 + lane % 4 * 2 - (position + lane / 4 + h * 8);
        if (ALIBI) {
            const float slope = lp_slope[head], bias = slope * float(ahead);
            LP_UNROLL for (int j = 0; j < KT; ++j) {
                LP_UNROLL for (int e = 0; e < 2; ++e) {
                    float& x = score[j][2 * h + e];
                    x = fmaf(x, SCORE_SCALE, fmaf(slope, float(j * 8 + e), bias));
                }
            }
        }
        if (edge) {
            const int room = total - key0 - lane % 4 * 2;
            LP_UNROLL for (int j = 0; j < KT; ++j) {
                LP_UNROLL for (int e = 0; e < 2; ++e) {
                    const int on = j * 8 + e;
                    const bool hidden = CAUSAL ? ahead > -on : room <= on;
                    if (hidden || (WINDOW > 0 && ahead <= -WINDOW - on)) score[j][2 * h + e] = -LP_INFINITY;
                }
            }
        }
        float top = most[h];
        LP_UNROLL for (int j = 0; j < KT; ++j) top = fmaxf(top, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        // A row that has seen no key yet keeps weights of zero.
        const float base = (top == -LP_INFINITY ? 0.0f : top) * EXPONENT_SCALE;
        const float fade = lp_exp2(most[h] * EXPONENT_SCALE - base);
        most[h] = top;
        weight[h] *= fade;
        LP_UNROLL for (int j = 0; j < DT; ++j) sum[j][2 * h] *= fade, sum[j][2 * h + 1] *= fade;
        LP_UNROLL for (int j = 0; j < KT; ++j) {
            LP_UNROLL for (int e = 0; e < 2; ++e) {
                float& x = score[j][2 * h + e];
                x = lp_exp2(fmaf(x, EXPONENT_SCALE, -base));
                weight[h] += x;
            }
        }
    }
}

// Weights of 16 keys as the left factor of a product, bf16.
template <int KT>
LP_DEVICE void lp_factor_of(const float (&score)[KT][4], int c, unsigned (&p)[4]) {
    LP_UNROLL for (int r = 0; r < 4; ++r) p[r] = lp_pack(score[2 * c + r / 2][r % 2 * 2], score[2 * c + r / 2][r % 2 * 2 + 1]);
}

// A row's sum, which four lanes have parts of; one over it; and its logarithm to the base of two, with the maximum back in it.
LP_DEVICE float lp_whole(float weight) {
    weight += __shfl_xor_sync(0xffffffffu, weight, 1);
    return weight + __shfl_xor_sync(0xffffffffu, weight, 2);
}
LP_DEVICE float lp_share(float whole) { return whole > 0.0f ? __fdividef(1.0f, whole) : 0.0f; }
LP_DEVICE float lp_log_sum(float most, float whole) {
    return whole > 0.0f ? fmaf(most, EXPONENT_SCALE, log2f(whole)) : LP_INFINITY;
}

