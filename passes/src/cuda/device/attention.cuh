// softmax(q · k^T * scale + mask) · v for BQ queries of one head, without the scores ever leaving the registers: blocks of BKV
// keys pass through shared memory, and each row keeps its maximum and its sum (online softmax in powers of two). A warp owns
// MT * 16 queries. Values are on their way while scores are computed, the next keys while values are weighed.
constexpr int WARPS = 4, THREADS = 32 * WARPS, BQ = WARPS * MT * 16, PITCH = HD + 8, PIECES = HD / 8;
constexpr int KT = BKV / 8, DT = HD / 8;

// Starts copying ROWS rows of D columns; rows from `limit` and columns from D become zero. A thread keeps its piece and walks
// down the rows by equal steps; where the pieces of a row are no power of two some threads have none.
template <int ROWS, int ROW_PITCH>
LP_DEVICE void lp_stage(unsigned to, const bf16* from, int row0, int limit) {
    constexpr int SLOTS = PIECES <= 2 ? 2 : PIECES <= 4 ? 4 : PIECES <= 8 ? 8 : PIECES <= 16 ? 16 : 32, STEP = THREADS / SLOTS;
    const int row = threadIdx.x / SLOTS, piece = threadIdx.x % SLOTS;
    const bf16* const source = from + size_t(row0 + row) * ROW_PITCH + piece * 8;
    const unsigned target = to + (row * PITCH + piece * 8) * 2;
    if (SLOTS == PIECES || piece < PIECES) {
        LP_UNROLL for (int i = 0; i < ROWS / STEP; ++i) {
            const bool inside = row0 + row + i * STEP < limit && piece * 8 < D;
            lp_copy16(target + i * STEP * PITCH * 2, source + size_t(i) * STEP * ROW_PITCH, inside ? 16 : 0);
        }
    }
}

LP_DEVICE void lp_attention(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* log_sums, int cached) {
    LP_DYNAMIC_SHARED(memory);
    bf16* const queries = reinterpret_cast<bf16*>(memory);
    const unsigned to_queries = lp_shared(queries), to_keys = to_queries + BQ * PITCH * 2, to_values = to_keys + BKV * PITCH * 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The longest rows first: with a causal mask the last queries see the most keys.
    const int q0 = (gridDim.x - 1 - blockIdx.x) * BQ, head = blockIdx.y, batch = blockIdx.z;
    const int total = CAUSAL || CACHED ? cached + S : L;
    const int seen = cached + q0 + BQ;
    const int end = CAUSAL && seen < total ? seen : total;
    const int oldest = cached + q0 - WINDOW + 1;
    const int begin = WINDOW > 0 && oldest > 0 ? oldest / BKV * BKV : 0;
    k += size_t(batch) * L * KV_PITCH + head / (HEADS / KV_HEADS) * D;
    v += size_t(batch) * L * KV_PITCH + head / (HEADS / KV_HEADS) * D;
    q += size_t(batch) * S * Q_PITCH + head * D;
    out += size_t(batch) * S * Q_PITCH + head * D;

    float sum[MT][DT][4] = {}, most[MT][2], weight[MT][2] = {};
    LP_UNROLL for (int i = 0; i < MT; ++i) most[i][0] = most[i][1] = -LP_INFINITY;
    lp_stage<BQ, Q_PITCH>(to_queries, q, q0, S);
    lp_stage<BKV, KV_PITCH>(to_keys, k, begin, total);
    lp_copy_commit();
    const int my_row = warp * MT * 16, my_position = cached + q0 + my_row;
    // Where this lane's addresses for ldmatrix begin; everything else about them is constant.
    const unsigned my_queries = to_queries + ((my_row + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned my_keys = to_keys + ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned my_values = to_values + ((lane % 8 + lane / 8 % 2 * 8) * PITCH + lane / 16 * 8) * 2;
    for (int key0 = begin; key0 < end; key0 += BKV) {
        lp_copy_wait<0>();
        __syncthreads();
        lp_stage<BKV, KV_PITCH>(to_values, v, key0, total);
        lp_copy_commit();

        float score[MT][KT][4] = {};
        LP_UNROLL for (int c = 0; c < HD / 16; ++c) {
            unsigned x[MT][4];
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                lp_load_matrices(x[i], my_queries + (i * 16 * PITCH + c * 16) * 2);
            }
            LP_UNROLL for (int j = 0; j < KT / 2; ++j) {
                unsigned y[4];
                lp_load_matrices(y, my_keys + (j * 16 * PITCH + c * 16) * 2);
                LP_UNROLL for (int i = 0; i < MT; ++i) {
                    lp_mma(score[i][2 * j], x[i], y[0], y[1]);
                    lp_mma(score[i][2 * j + 1], x[i], y[2], y[3]);
                }
            }
        }

        // Every key of a causal row lies before the end, so only the other rows have to ask for it.
        const bool edge = (!CAUSAL && key0 + BKV > total) || (CAUSAL && key0 + BKV - 1 > my_position) ||
                          (WINDOW > 0 && key0 <= my_position + MT * 16 - 1 - WINDOW);
        LP_UNROLL for (int i = 0; i < MT; ++i) {
            LP_UNROLL for (int h = 0; h < 2; ++h) {
                // How far this lane's first key is ahead of the row; its others are constants further on.
                const int ahead = key0 + lane % 4 * 2 - (my_position + i * 16 + lane / 4 + h * 8);
                if (ALIBI) {
                    const float slope = lp_slope[head], bias = slope * float(ahead);
                    LP_UNROLL for (int j = 0; j < KT; ++j) {
                        LP_UNROLL for (int e = 0; e < 2; ++e) {
                            float& x = score[i][j][2 * h + e];
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
                            if (hidden || (WINDOW > 0 && ahead <= -WINDOW - on)) score[i][j][2 * h + e] = -LP_INFINITY;
                        }
                    }
                }
                float top = most[i][h];
                LP_UNROLL for (int j = 0; j < KT; ++j) top = fmaxf(top, fmaxf(score[i][j][2 * h], score[i][j][2 * h + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                // A row that has seen no key yet keeps weights of zero.
                const float base = (top == -LP_INFINITY ? 0.0f : top) * EXPONENT_SCALE;
                const float fade = lp_exp2(most[i][h] * EXPONENT_SCALE - base);
                most[i][h] = top;
                weight[i][h] *= fade;
                LP_UNROLL for (int j = 0; j < DT; ++j) sum[i][j][2 * h] *= fade, sum[i][j][2 * h + 1] *= fade;
                LP_UNROLL for (int j = 0; j < KT; ++j) {
                    LP_UNROLL for (int e = 0; e < 2; ++e) {
                        float& x = score[i][j][2 * h + e];
                        x = lp_exp2(fmaf(x, EXPONENT_SCALE, -base));
                        weight[i][h] += x;
                    }
                }
            }
        }

        lp_copy_wait<0>();
        __syncthreads();
        if (key0 + BKV < end) lp_stage<BKV, KV_PITCH>(to_keys, k, key0 + BKV, total);
        lp_copy_commit();
        LP_UNROLL for (int c = 0; c < KT / 2; ++c) {
            unsigned p[MT][4];
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                LP_UNROLL for (int r = 0; r < 4; ++r) {
                    p[i][r] = lp_pack(score[i][2 * c + r / 2][r % 2 * 2], score[i][2 * c + r / 2][r % 2 * 2 + 1]);
                }
            }
            LP_UNROLL for (int j = 0; j < DT / 2; ++j) {
                unsigned y[4];
                lp_load_transposed(y, my_values + (c * 16 * PITCH + j * 16) * 2);
                LP_UNROLL for (int i = 0; i < MT; ++i) {
                    lp_mma(sum[i][2 * j], p[i], y[0], y[1]);
                    lp_mma(sum[i][2 * j + 1], p[i], y[2], y[3]);
                }
            }
        }
    }
    lp_copy_wait<0>();

    // Rows leave by way of the place of their own queries, to be stored 16 bytes at a time.
    LP_UNROLL for (int i = 0; i < MT; ++i) {
        LP_UNROLL for (int h = 0; h < 2; ++h) {
            float whole = weight[i][h];
            whole += __shfl_xor_sync(0xffffffffu, whole, 1);
            whole += __shfl_xor_sync(0xffffffffu, whole, 2);
            const float inverse = whole > 0.0f ? __fdividef(1.0f, whole) : 0.0f;
            if (LOG_SUMS && lane % 4 == 0) {
                const int query = q0 + my_row + i * 16 + lane / 4 + h * 8;
                const float log_sum = whole > 0.0f ? fmaf(most[i][h], EXPONENT_SCALE, log2f(whole)) : LP_INFINITY;
                if (query < S) log_sums[(size_t(batch) * HEADS + head) * SUMS_PITCH + query] = log_sum;
            }
            bf16* const row = queries + (my_row + i * 16 + lane / 4 + h * 8) * PITCH + lane % 4 * 2;
            LP_UNROLL for (int j = 0; j < DT; ++j) {
                *reinterpret_cast<unsigned*>(row + j * 8) = lp_pack(sum[i][j][2 * h] * inverse, sum[i][j][2 * h + 1] * inverse);
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < MT * 16 * PIECES; i += 32) {
        const int row = my_row + i / PIECES, piece = i % PIECES;
        if (q0 + row < S && piece * 8 < D) {
            *reinterpret_cast<uint4*>(out + size_t(q0 + row) * Q_PITCH + piece * 8) =
                *reinterpret_cast<const uint4*>(queries + row * PITCH + piece * 8);
        }
    }
}
