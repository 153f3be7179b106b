// The derivatives of softmax(q · k^T) · v in one walk: a block has 128 keys and walks over the queries that see them, finds
// their weights again from the sums that the forward pass kept, and makes dk and dv in registers. Its share of dq is added to
// the sums of those queries when its turn comes: later keys first, so that every run adds in the same order and gives the same
// bits. Blocks draw their keys in the order in which they start; whoever is waited for has started before, so none waits for ever.
constexpr int SPITCH = BQ + 8, QT = BQ / 8, DT = HD / 8, GROUPS = (HD + 63) / 64, BLOCKS_Q = (S + BQ - 1) / BQ, BLOCKS_K = (L + ROWS - 1) / ROWS;
constexpr int TURNS = BATCH * HEADS * BLOCKS_Q, SUMS = GROUPS * 4, STAGE = 2 * BQ * PITCH * 2;

// Σ dy y over the width of each query's head: what the derivative of softmax takes off. All turns begin at zero.
LP_DEVICE void lp_row_products(const bf16* dy, const bf16* y, float* products, int* turns) {
    constexpr int WIDE = D / 8, LANES = WIDE <= 1 ? 1 : WIDE <= 2 ? 2 : WIDE <= 4 ? 4 : WIDE <= 8 ? 8 : 16;
    const size_t at = size_t(blockIdx.x) * THREADS + threadIdx.x, row = at / LANES, piece = at % LANES;
    if (at <= TURNS) turns[at] = 0;
    const size_t token = row / HEADS, head = row % HEADS, from = token * Q_PITCH + head * D + piece * 8;
    const bool inside = token < size_t(BATCH) * S;
    float sum = 0.0f;
    if (inside && piece < WIDE) {
        float a[8], b[8];
        lp_load(dy + from, 8, a);
        lp_load(y + from, 8, b);
        LP_UNROLL for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
    }
    LP_UNROLL for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (inside && piece == 0) products[(token / S * HEADS + head) * SUMS_PITCH + token % S] = sum;
}

// Starts copying a block of queries and their dy, and reads what is known of them: the sum of softmax, and Σ dy y.
LP_DEVICE void lp_stage_queries(
    unsigned to, float (&known)[2][BQ], const bf16* q, const bf16* dy, const float* log_sums, const float* products, int q0) {
    lp_stage<BQ, Q_PITCH>(to, q, q0, S);
    lp_stage<BQ, Q_PITCH>(to + BQ * PITCH * 2, dy, q0, S);
    lp_copy_commit();
    for (int i = threadIdx.x; i < 2 * BQ; i += THREADS) {
        const int row = q0 + i % BQ;
        // Rows that are not there weigh nothing.
        known[i / BQ][i % BQ] = row >= S ? (i < BQ ? LP_INFINITY : 0.0f) : (i < BQ ? log_sums : products)[row];
    }
}

// Adds this block's share of dq to that of the blocks before it; the last one leaves the sums as they are stored.
LP_DEVICE void lp_add_in_turn(
    const float (&sum)[2][GROUPS * 2][4], int mine, bool last, float* sums, int* turn, bf16* rows, bf16* dq, int q0) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (mine > 0) {
        if (threadIdx.x == 0) lp_await(turn, mine);
        __syncthreads();
    }
    float* const place = sums + threadIdx.x * 4;
    float4 whole[2][GROUPS * 2];
    LP_UNROLL for (int i = 0; i < SUMS; ++i) {
        const float* const s = sum[i / (GROUPS * 2)][i % (GROUPS * 2)];
        float4 x = make_float4(s[0], s[1], s[2], s[3]);
        if (mine > 0) {
            const float4 before = *reinterpret_cast<const float4*>(place + i * THREADS * 4);
            x = make_float4(before.x + x.x, before.y + x.y, before.z + x.z, before.w + x.w);
        }
        if (!last) *reinterpret_cast<float4*>(place + i * THREADS * 4) = x;
        whole[i / (GROUPS * 2)][i % (GROUPS * 2)] = x;
    }
    __syncthreads();
    if (!last) {
        if (threadIdx.x == 0) lp_pass(turn, mine + 1);
        return;
    }
    LP_UNROLL for (int m = 0; m < 2; ++m) {
        LP_UNROLL for (int n = 0; n < GROUPS * 2; ++n) {
            const int col = (warp / 2 + n / 2 * 4) * 16 + n % 2 * 8 + lane % 4 * 2;
            bf16* const row = rows + (warp % 2 * 32 + m * 16 + lane / 4) * PITCH + col;
            if (col >= HD) continue;
            *reinterpret_cast<unsigned*>(row) = lp_pack(whole[m][n].x, whole[m][n].y);
            *reinterpret_cast<unsigned*>(row + 8 * PITCH) = lp_pack(whole[m][n].z, whole[m][n].w);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BQ * PIECES; i += THREADS) {
        const int row = i / PIECES, col = i % PIECES * 8;
        if (q0 + row < S && col < D) {
            *reinterpret_cast<uint4*>(dq + size_t(q0 + row) * Q_PITCH + col) = *reinterpret_cast<const uint4*>(rows + row * PITCH + col);
        }
    }
}

LP_DEVICE void lp_derivatives(
    const bf16* q, const bf16* k, const bf16* v, const bf16* dy, const float* log_sums, const float* products, bf16* dq, bf16* dk,
    bf16* dv, float* sums, int* turns) {
    LP_DYNAMIC_SHARED(memory);
    __align__(16) __shared__ float known[2][2][BQ];
    __shared__ int drawn;
    const unsigned to_k = lp_shared(memory), to_v = to_k + ROWS * PITCH * 2, to_q = to_v + ROWS * PITCH * 2, to_ds = to_q + 2 * STAGE;
    bf16* const ds = reinterpret_cast<bf16*>(memory) + 2 * ROWS * PITCH + STAGE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) drawn = lp_draw(turns + TURNS);
    __syncthreads();
    const int block = BLOCKS_K - 1 - drawn % BLOCKS_K, kv_head = drawn / BLOCKS_K % KV_HEADS, batch = drawn / BLOCKS_K / KV_HEADS;
    const int key0 = block * ROWS;
    const size_t at_k = size_t(batch) * L * KV_PITCH + kv_head * D;
    // Blocks of queries that see one of these keys.
    const int first = CAUSAL ? key0 / BQ : 0, past = (key0 + ROWS + WINDOW - 2) / BQ + 1;
    const int count = (WINDOW > 0 && past < BLOCKS_Q ? past : BLOCKS_Q) - first, steps = count > 0 ? RATIO * count : 0;
    lp_stage<ROWS, KV_PITCH>(to_k, k + at_k, key0, L);
    lp_stage<ROWS, KV_PITCH>(to_v, v + at_k, key0, L);
    lp_copy_commit();
    const unsigned mine = ((warp * 16 + lane % 16) * PITCH + lane / 16 * 8) * 2;
    const unsigned others = ((lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8) * 2;
    const unsigned turned = ((lane % 8 + lane / 8 % 2 * 8) * PITCH + lane / 16 * 8) * 2;
    const unsigned my_ds = to_ds + ((lane % 8 + lane / 16 * 8) * SPITCH + warp % 2 * 32 + lane / 8 % 2 * 8) * 2;
    const int key = key0 + warp * 16 + lane / 4;

    float key_sum[DT][4] = {}, value_sum[DT][4] = {};
    for (int step = -1; step < steps; ++step) {
        const int next = step + 1, of_next = next < steps ? next : 0;
        lp_copy_wait<0>();
        __syncthreads();
        if (next < steps) {
            const int head = kv_head * RATIO + of_next / count;
            const size_t row = size_t(batch) * HEADS + head, at_q = size_t(batch) * S * Q_PITCH + head * D;
            lp_stage_queries(
                to_q + next % 2 * STAGE, known[next % 2], q + at_q, dy + at_q, log_sums + row * SUMS_PITCH, products + row * SUMS_PITCH,
                (first + of_next % count) * BQ);
        }
        if (step < 0) continue;
        const int head = kv_head * RATIO + step / count, of_queries = first + step % count, q0 = of_queries * BQ;
        const unsigned at = to_q + step % 2 * STAGE, at_dy = at + BQ * PITCH * 2;
        const float (&here)[2][BQ] = known[step % 2];
        const float slope = ALIBI ? lp_slope[head] : 0.0f;
        const bool edge = key0 + ROWS > L || q0 + BQ > S || (CAUSAL && q0 < key0 + ROWS - 1) || (WINDOW > 0 && key0 <= q0 + BQ - 1 - WINDOW);
        float score[QT][4] = {};
        lp_rows_by_rows(to_k + mine, at + others, score);
        LP_UNROLL for (int j = 0; j < QT; ++j) {
            const float2 log_sum = *reinterpret_cast<const float2*>(&here[0][j * 8 + lane % 4 * 2]);
            LP_UNROLL for (int i = 0; i < 4; ++i) {
                const int query = q0 + j * 8 + lane % 4 * 2 + i % 2, row = key + i / 2 * 8;
                const float p = lp_exp2(lp_scaled(score[j][i], slope, query, row) - (i % 2 ? log_sum.y : log_sum.x));
                score[j][i] = edge && lp_hidden(query, row) ? 0.0f : p;
            }
        }
        lp_weigh_rows(score, at_dy + turned, value_sum);
        float dp[QT][4] = {};
        lp_rows_by_rows(to_v + mine, at_dy + others, dp);
        LP_UNROLL for (int j = 0; j < QT; ++j) {
            const float2 product = *reinterpret_cast<const float2*>(&here[1][j * 8 + lane % 4 * 2]);
            LP_UNROLL for (int i = 0; i < 4; ++i) dp[j][i] = score[j][i] * (dp[j][i] - (i % 2 ? product.y : product.x)) * SCALE;
            bf16* const place = ds + (warp * 16 + lane / 4) * SPITCH + j * 8 + lane % 4 * 2;
            *reinterpret_cast<unsigned*>(place) = lp_pack(dp[j][0], dp[j][1]);
            *reinterpret_cast<unsigned*>(place + 8 * SPITCH) = lp_pack(dp[j][2], dp[j][3]);
        }
        lp_weigh_rows(dp, at + turned, key_sum);
        __syncthreads();

        // A warp has 32 queries and every fourth 16 columns of dq.
        float sum[2][GROUPS * 2][4] = {};
        LP_UNROLL for (int c = 0; c < ROWS / 16; ++c) {
            unsigned x[2][4];
            LP_UNROLL for (int m = 0; m < 2; ++m) lp_load_transposed(x[m], my_ds + (c * 16 * SPITCH + m * 16) * 2);
            LP_UNROLL for (int g = 0; g < GROUPS; ++g) {
                const int col = (warp / 2 + g * 4) * 16;
                if (col >= HD) continue;
                unsigned y[4];
                lp_load_transposed(y, to_k + turned + (c * 16 * PITCH + col) * 2);
                LP_UNROLL for (int m = 0; m < 2; ++m) {
                    lp_mma(sum[m][2 * g], x[m], y[0], y[1]);
                    lp_mma(sum[m][2 * g + 1], x[m], y[2], y[3]);
                }
            }
        }
        const int latest = CAUSAL && (q0 + BQ - 1) / ROWS < BLOCKS_K ? (q0 + BQ - 1) / ROWS : BLOCKS_K - 1;
        const int earliest = WINDOW > 0 && q0 >= WINDOW ? (q0 - WINDOW + 1) / ROWS : 0;
        const size_t row = size_t(batch) * HEADS + head;
        lp_add_in_turn(
            sum, latest - block, block == earliest, sums + (row * BLOCKS_Q + of_queries) * (SUMS * THREADS * 4),
            turns + row * BLOCKS_Q + of_queries, ds, dq + size_t(batch) * S * Q_PITCH + head * D, q0);
    }
    __syncthreads();
    lp_leave<DT, KV_PITCH>(key_sum, reinterpret_cast<bf16*>(memory), dk + at_k, key0, L, 0);
    lp_leave<DT, KV_PITCH>(value_sum, reinterpret_cast<bf16*>(memory) + ROWS * PITCH, dv + at_k, key0, L, 0);
}
