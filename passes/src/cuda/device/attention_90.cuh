// The same on Hopper: a thread of the last warpgroup fetches the queries of a block and keeps STAGES blocks of BKV keys and
// values on their way; the other warpgroups take 64 queries each. Scores are products of what lies in shared memory, weights
// leave the registers as the left factor of the next product, whose right factor is turned: values lie one row per key.
constexpr int GROUPS = 2, THREADS = 128 * (GROUPS + 1), BQ = 64 * GROUPS, CHUNKS = (HD + 63) / 64, PIECES = HD / 8;
constexpr int KT = BKV / 8, DT = HD / 8, Q_BYTES = BQ * CHUNKS * 128, KV_BYTES = BKV * CHUNKS * 128;

LP_DEVICE void lp_fetch_rows(unsigned to, const LpMap& from, int rows, int head, int row, int sequence, unsigned barrier) {
    LP_UNROLL for (int c = 0; c < CHUNKS; ++c) lp_fetch_part(to + c * rows * 128, from, c * 64, head, row, sequence, barrier);
}

LP_DEVICE void lp_attention_90(const LpMap& q, const LpMap& k, const LpMap& v, bf16* out, float* log_sums) {
    LP_DYNAMIC_SHARED(memory);
    const unsigned to_queries = lp_shared(memory), to_keys = to_queries + Q_BYTES, to_values = to_keys + STAGES * KV_BYTES;
    // A barrier for the queries; for each stage one that keys are there, that they are used, and the same of values.
    const unsigned asked = to_values + STAGES * KV_BYTES, keys = asked + 8, keys_used = keys + 8 * STAGES;
    const unsigned values = keys_used + 8 * STAGES, values_used = values + 8 * STAGES;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The longest rows first: with a causal mask the last queries see the most keys.
    const int q0 = (gridDim.x - 1 - blockIdx.x) * BQ, head = blockIdx.y, batch = blockIdx.z;
    const int end = CAUSAL && q0 + BQ < L ? q0 + BQ : L;
    const int oldest = q0 - WINDOW + 1, begin = WINDOW > 0 && oldest > 0 ? oldest / BKV * BKV : 0;
    if (threadIdx.x == 0) {
        lp_barrier_init(asked, 1);
        for (int s = 0; s < STAGES; ++s) {
            lp_barrier_init(keys + 8 * s, 1), lp_barrier_init(keys_used + 8 * s, 4 * GROUPS);
            lp_barrier_init(values + 8 * s, 1), lp_barrier_init(values_used + 8 * s, 4 * GROUPS);
        }
        lp_barrier_fence();
    }
    __syncthreads();

    int turn = 0;
    if (group == GROUPS) {
        lp_fewer_registers<24>();
        if (threadIdx.x % 128 != 0) return;
        const int kv_head = head / (HEADS / KV_HEADS);
        lp_barrier_expect(asked, Q_BYTES);
        lp_fetch_rows(to_queries, q, BQ, head, q0, batch, asked);
        for (int key0 = begin; key0 < end; key0 += BKV, ++turn) {
            const unsigned stage = turn % STAGES;
            const int parity = turn / STAGES % 2 ^ 1;
            lp_barrier_wait(keys_used + 8 * stage, parity);
            lp_barrier_expect(keys + 8 * stage, KV_BYTES);
            lp_fetch_rows(to_keys + stage * KV_BYTES, k, BKV, kv_head, key0, batch, keys + 8 * stage);
            lp_barrier_wait(values_used + 8 * stage, parity);
            lp_barrier_expect(values + 8 * stage, KV_BYTES);
            lp_fetch_rows(to_values + stage * KV_BYTES, v, BKV, kv_head, key0, batch, values + 8 * stage);
        }
        return;
    }

    lp_more_registers<240>();
    const int my_row = warp * 16, my_position = q0 + my_row;
    float sum[DT][4], most[2] = {-LP_INFINITY, -LP_INFINITY}, weight[2] = {};
    LP_UNROLL for (int j = 0; j < DT; ++j) LP_UNROLL for (int i = 0; i < 4; ++i) sum[j][i] = 0.0f;
    lp_barrier_wait(asked, 0);
    for (int key0 = begin; key0 < end; key0 += BKV, ++turn) {
        const unsigned stage = turn % STAGES;
        const int parity = turn / STAGES % 2;
        float score[KT][4];
        lp_barrier_wait(keys + 8 * stage, parity);
        lp_products_begin();
        LP_UNROLL for (int c = 0; c < HD / 16; ++c) {
            const unsigned left = to_queries + c / 4 * BQ * 128 + group * 64 * 128 + c % 4 * 32;
            const unsigned right = to_keys + stage * KV_BYTES + c / 4 * BKV * 128 + c % 4 * 32;
            lp_product_64(score, lp_matrix(left), lp_matrix(right), c > 0);
        }
        lp_products_commit();
        lp_products_wait<0>();
        if (lane == 0) lp_barrier_arrive(keys_used + 8 * stage);

        lp_weigh(score, sum, most, weight, key0, my_position, lp_edge<BKV, 16>(key0, my_position, L), L, head);
        unsigned p[KT / 2][4];
        LP_UNROLL for (int c = 0; c < KT / 2; ++c) lp_factor_of(score, c, p[c]);
        lp_barrier_wait(values + 8 * stage, parity);
        lp_products_begin();
        LP_UNROLL for (int c = 0; c < KT / 2; ++c) {
            lp_product_held<true>(sum, p[c], lp_turned(to_values + stage * KV_BYTES + c * 2048, BKV * 128), 1);
        }
        lp_products_commit();
        lp_products_wait<0>();
        if (lane == 0) lp_barrier_arrive(values_used + 8 * stage);
    }

    // Rows leave by way of the place of their own queries, which the whole warpgroup is done with, to be stored 16 bytes at a
    // time; pieces of a row are exchanged by row, so that neither way meets bank conflicts.
    lp_group_meet();
    unsigned char* const rows = memory + my_row * 128;
    LP_UNROLL for (int h = 0; h < 2; ++h) {
        const float whole = lp_whole(weight[h]), inverse = lp_share(whole);
        const int row = lane / 4 + h * 8;
        if (LOG_SUMS && lane % 4 == 0 && my_position + row < S) {
            log_sums[(size_t(batch) * HEADS + head) * SUMS_PITCH + my_position + row] = lp_log_sum(most[h], whole);
        }
        LP_UNROLL for (int j = 0; j < DT; ++j) {
            unsigned char* const at = rows + j / 8 * BQ * 128 + row * 128 + ((j % 8 ^ row % 8) * 16 + lane % 4 * 4);
            *reinterpret_cast<unsigned*>(at) = lp_pack(sum[j][2 * h] * inverse, sum[j][2 * h + 1] * inverse);
        }
    }
    __syncwarp();
    out += size_t(batch) * S * Q_PITCH + head * D;
    for (int i = lane; i < 16 * PIECES; i += 32) {
        const int row = i / PIECES, piece = i % PIECES;
        if (my_position + row < S && piece * 8 < D) {
            *reinterpret_cast<uint4*>(out + size_t(my_position + row) * Q_PITCH + piece * 8) =
                *reinterpret_cast<const uint4*>(rows + piece / 8 * BQ * 128 + row * 128 + (piece % 8 ^ row % 8) * 16);
        }
    }
}
