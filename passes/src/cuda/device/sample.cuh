// Picks the next token of one sequence from its row of logits. A block has one sequence.
//
// Elements are ranked by a whole number: larger logits first, lower ids first among equals. Every choice (the k likeliest, the
// likeliest of a total probability, the one that a random number falls on) is the first element in that order at which a sum
// reaches a limit; it is found digit by digit of the rank, with the sums of all sixteen digits at once. Sums are in double and
// in one order, so a row always gives the same token.
typedef unsigned long long Rank;
constexpr int WARPS = THREADS / 32, DIGITS = (32 + ID_BITS + 3) / 4;
constexpr Rank IDS = (Rank(1) << ID_BITS) - 1;

// Zero for what is no number.
LP_DEVICE Rank lp_rank(float x, int id) {
    if (!(x == x)) return 0;
    const unsigned bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return Rank(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << ID_BITS | (IDS - Rank(id));
}

LP_DEVICE Rank lp_block_highest(Rank x, Rank* partial) {
    LP_UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) {
        const Rank other = __shfl_xor_sync(0xffffffffu, x, lanes);
        x = other > x ? other : x;
    }
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) x = partial[w] > x ? partial[w] : x;
    return x;
}

// Sixteen sums over the block, known to every thread afterwards.
LP_DEVICE void lp_block_sums(double (&sum)[16], double (*partial)[16]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    LP_UNROLL for (int d = 0; d < 16; ++d) {
        LP_UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) sum[d] += __shfl_xor_sync(0xffffffffu, sum[d], lanes);
    }
    __syncthreads();
    LP_UNROLL for (int d = 0; d < 16; ++d) {
        if (lane == d) partial[warp][d] = sum[d];
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        double whole = 0.0;
        for (int w = 0; w < WARPS; ++w) whole += partial[w][threadIdx.x];
        partial[WARPS][threadIdx.x] = whole;
    }
    __syncthreads();
    LP_UNROLL for (int d = 0; d < 16; ++d) sum[d] = partial[WARPS][d];
}

// The rank of the first element, from the highest down to `lowest`, at which the sum of all up to it reaches a limit (goes
// beyond it). Elements count one each up to `most`, or their probabilities up to the share `most` of all. The last element
// where no sum gets there. Zero where there is none.
LP_DEVICE Rank lp_reach(
    const Element* logits, float top, float temperature, Rank lowest, bool counting, double most, bool beyond,
    double (*partial)[16]) {
    Rank found = 0;
    double before = 0.0, limit = most;
    for (int digit = DIGITS - 1; digit >= 0; --digit) {
        double sum[16] = {};
        for (int id = threadIdx.x; id < VOCAB; id += THREADS) {
            const float x = lp_to_float(logits[id]);
            const Rank rank = lp_rank(x, id);
            if (rank < lowest || rank == 0 || (rank >> 4 * digit >> 4) != (found >> 4 * digit >> 4)) continue;
            const double weight = exp((double(x) - double(top)) / double(temperature));
            const int mine = int(rank >> 4 * digit & 15);
            const double counts = !(weight > 0.0) ? 0.0 : counting ? 1.0 : weight;
            LP_UNROLL for (int d = 0; d < 16; ++d) sum[d] += d == mine ? counts : 0.0;
        }
        lp_block_sums(sum, partial);
        if (digit == DIGITS - 1 && !counting) {
            double whole = 0.0;
            LP_UNROLL for (int d = 15; d >= 0; --d) whole += sum[d];
            limit = most * whole;
        }
        int chosen = 0;
        double last = 0.0;
        bool there = false;
        LP_UNROLL for (int d = 15; d >= 0; --d) {
            if (there || !(sum[d] > 0.0)) continue;
            chosen = d, last = sum[d];
            there = beyond ? before + sum[d] > limit : before + sum[d] >= limit;
            if (!there) before += sum[d];
        }
        // Where rounding lets no sum get there, the last element is meant.
        if (!there) before -= last, limit = 1e300;
        found |= Rank(chosen) << 4 * digit;
    }
    return found;
}

// The next number in [0, 1), by SplitMix64 (Steele, Lea and Flood, 2014).
LP_DEVICE double lp_uniform(Rank& state) {
    state += 0x9e3779b97f4a7c15ull;
    Rank z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return double((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

LP_DEVICE void lp_sample(
    const Element* logits, const float* settings, int* random, int* ids, int* cached, int* made, int* history) {
    __shared__ double partial[WARPS + 1][16];
    __shared__ Rank highest[WARPS];
    __shared__ float tops[32];
    const int row = blockIdx.x;
    const float temperature = settings[0], top_p = settings[1], top_k = settings[2];
    logits += size_t(row) * PITCH, random += row * 2;
    Rank token = 0, state = Rank(unsigned(random[0])) | Rank(unsigned(random[1])) << 32;
    if (temperature > 0.0f) {
        float top = -LP_INFINITY;
        for (int id = threadIdx.x; id < VOCAB; id += THREADS) top = fmaxf(top, lp_to_float(logits[id]));
        top = lp_block_max<THREADS>(top, tops);
        Rank lowest = 1;
        if (top_k > 0.0f) lowest = lp_reach(logits, top, temperature, lowest, true, top_k, false, partial);
        if (top_p < 1.0f) lowest = lp_reach(logits, top, temperature, lowest, false, top_p, false, partial);
        token = lp_reach(logits, top, temperature, lowest, false, lp_uniform(state), true, partial);
    } else {
        for (int id = threadIdx.x; id < VOCAB; id += THREADS) {
            const Rank rank = lp_rank(lp_to_float(logits[id]), id);
            token = rank > token ? rank : token;
        }
        token = lp_block_highest(token, highest);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const Rank picked = IDS - (token & IDS);
    const int id = token == 0 || picked >= VOCAB ? 0 : int(picked);
    random[0] = int(unsigned(state)), random[1] = int(unsigned(state >> 32));
    ids[row * IDS_PITCH] = id;
    const int step = made[row];
    if (step < STEPS) history[row * HISTORY_PITCH + step] = id;
    made[row] = step + 1;
    if (row == 0) cached[0] += 1;
}
