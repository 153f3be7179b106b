// softmax(q · k^T * scale + mask) · v for BQ queries of one head, without the scores ever leaving the registers: blocks of BKV
// keys pass through shared memory. A warp owns MT * 16 queries. Values are on their way while scores are computed, the next keys
// while values are weighed.
constexpr int BQ = WARPS * MT * 16, KT = BKV / 8, DT = HD / 8;

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

        const bool edge = lp_edge<BKV, MT * 16>(key0, my_position, total);
        LP_UNROLL for (int i = 0; i < MT; ++i) {
            lp_weigh(score[i], sum[i], most[i], weight[i], key0, my_position + i * 16, edge, total, head);
        }

        lp_copy_wait<0>();
        __syncthreads();
        if (key0 + BKV < end) lp_stage<BKV, KV_PITCH>(to_keys, k, key0 + BKV, total);
        lp_copy_commit();
        LP_UNROLL for (int c = 0; c < KT / 2; ++c) {
            unsigned p[MT][4];
            LP_UNROLL for (int i = 0; i < MT; ++i) lp_factor_of(score[i], c, p[i]);
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
            const float whole = lp_whole(weight[i][h]), inverse = lp_share(whole);
            if (LOG_SUMS && lane % 4 == 0) {
                const int query = q0 + my_row + i * 16 + lane / 4 + h * 8;
                if (query < S) log_sums[(size_t(batch) * HEADS + head) * SUMS_PITCH + query] = lp_log_sum(most[i][h], whole);
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
