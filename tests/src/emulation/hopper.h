// Hopper's instructions on a host: the engine that copies boxes, the barriers that count its bytes, products of warpgroups.
//
// Everything in the background happens as late as the rules allow: a box lands when somebody waits for its barrier and all
// arrivals are in, a product is computed when its group is waited for. A box may not begin to land where a product still
// reads, nor a product read where a box is under way.
#include <map>

// What the driver would encode; the same bytes as the host writes (mod.rs).
struct alignas(64) LpMap {
    unsigned long long address, rows, cols, pitch_bytes, box_rows, box_cols, rest[10];
};
#define LP_MAP const LpMap

namespace emu {
struct box { unsigned to; LpMap map; int column, row; };
struct barrier { int arrivals = 0, arrived = 0; long bytes = 0, phase = 0; std::vector<box> boxes; };
static std::map<unsigned, barrier> barriers;
struct product { float* sums[128]; unsigned long long a, b; int columns; bool adds; };
struct warpgroup { std::vector<product> open; std::vector<std::vector<product>> groups; };
static std::vector<warpgroup> warpgroups;
static std::vector<meeting> group_meetings;

// A block begins.
static void hopper_begins(int threads) {
    barriers.clear();
    warpgroups.assign((threads + 127) / 128, warpgroup());
    group_meetings.assign((threads + 127) / 128, meeting());
}
template <typename F> static void group_meet(const char* what, void* data, F&& all) {
    meet(group_meetings[now / 128], now % 128, 128, what, data, all);
}
static barrier& barrier_at(unsigned at) {
    if (at % 8) fail("a misaligned barrier");
    auto found = barriers.find(at);
    if (found == barriers.end()) fail("a barrier that was not set up");
    return found->second;
}
// Where an element lies: pieces of 16 bytes are exchanged by the row of 128 bytes they are in.
static unsigned swizzled(unsigned at) { return at ^ ((at >> 7 & 7) << 4); }
static void land(const box& b) {
    hush itself;
    const LpMap& m = b.map;
    for (unsigned r = 0; r < m.box_rows; ++r) for (unsigned c = 0; c < m.box_cols; ++c) {
        unsigned short value = 0;
        const long row = b.row + long(r), col = b.column + long(c);
        if (row >= 0 && row < long(m.rows) && col >= 0 && col < long(m.cols)) {
            const unsigned char* from = (const unsigned char*)m.address + row * m.pitch_bytes + col * 2;
            if (!emu_allocated(from, 2)) fail("a box from outside of every allocation");
            memcpy(&value, from, 2);
        }
        memcpy(shared.data() + swizzled(b.to + (r * m.box_cols + c) * 2), &value, 2);
    }
    transfer_lands(shared.data() + b.to, m.box_rows * m.box_cols * 2);
}
// The phase is over when all have arrived and all bytes are there.
static bool over(barrier& b) {
    if (b.arrived < b.arrivals) return false;
    for (const box& one : b.boxes) land(one), b.bytes -= one.map.box_rows * one.map.box_cols * 2;
    b.boxes.clear();
    if (b.bytes != 0) fail("a barrier waits for other bytes than come");
    b.arrived = 0, ++b.phase, ++progress;
    return true;
}
// A factor's tile in shared memory: its first byte, as the instruction's description has it.
static unsigned matrix_at(unsigned long long d) {
    if (d >> 62 != 1 || (d >> 32 & 0x3fff) != 64) fail("a matrix of another layout");
    return unsigned(d & 0x3fff) << 4;
}
static float element(unsigned start, int row, int k) {
    const unsigned at = swizzled(start + row / 8 * 1024 + row % 8 * 128 + k * 2);
    if (at + 2 > shared.n) fail("shared address out of bounds");
    unsigned short bits;
    memcpy(&bits, shared.data() + at, 2);
    return __uint_as_float(unsigned(bits) << 16);
}
// Every row of 128 bytes that a product reads a part of.
template <typename F> static void read_rows(const product& p, F&& each) {
    for (int row = 0; row < 64; ++row) each(shared.data() + matrix_at(p.a) / 128 * 128 + row * 128);
    for (int row = 0; row < p.columns; ++row) each(shared.data() + matrix_at(p.b) / 128 * 128 + row * 128);
}
static void compute(const product& p) {
    hush itself;
    const unsigned a = matrix_at(p.a), b = matrix_at(p.b);
    static float A[64][16], B[16][256];
    for (int k = 0; k < 16; ++k) {
        for (int row = 0; row < 64; ++row) A[row][k] = element(a, row, k);
        for (int col = 0; col < p.columns; ++col) B[k][col] = element(b, col, k);
    }
    for (int t = 0; t < 128; ++t) for (int i = 0; i < p.columns / 2; ++i) {
        const int row = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8, col = i / 4 * 8 + t % 4 * 2 + i % 2;
        float sum = p.adds ? p.sums[t][i] : 0.0f;
        for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][col];
        p.sums[t][i] = sum;
    }
    read_rows(p, [](unsigned char* at) { transfer_read_ends(at, 128); });
}
}  // namespace emu

static inline void lp_barrier_init(unsigned barrier, int arrivals) {
    emu::in_shared(barrier / 16 * 16, 16);
    emu::barriers[barrier] = emu::barrier();
    emu::barriers[barrier].arrivals = arrivals;
}
static inline void lp_barrier_fence() {}
static inline void lp_barrier_arrive(unsigned barrier) {
    if (++emu::barrier_at(barrier).arrived > emu::barrier_at(barrier).arrivals) emu::fail("more arrive than a barrier expects");
    ++emu::progress;
}
static inline void lp_barrier_expect(unsigned barrier, int bytes) { emu::barrier_at(barrier).bytes += bytes, lp_barrier_arrive(barrier); }
static inline void lp_barrier_wait(unsigned barrier, int parity) {
    for (emu::barrier& b = emu::barrier_at(barrier); b.phase % 2 == parity && !emu::over(b);) emu::yield();
}
static inline void lp_fetch(unsigned to, const LpMap& map, int column, int row, unsigned barrier) {
    if (to % 1024) emu::fail("a box begins within a swizzled row");
    const size_t bytes = map.box_rows * map.box_cols * 2;
    emu::in_shared(to, bytes);
    emu::transfer_begins(emu::shared.data() + to, bytes);
    emu::barrier_at(barrier).boxes.push_back({to, map, column, row});
}
static inline unsigned long long lp_matrix(unsigned at) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
static inline void lp_products_begin() {}
template <int N> static void lp_product_64(float (&d)[N][4], unsigned long long a, unsigned long long b, int adds) {
    struct call { float* d; unsigned long long a, b; int adds; } c = {&d[0][0], a, b, adds};
    emu::group_meet("product", &c, [](void** slots) {
        const call& first = *(call*)slots[0];
        emu::product p = {{}, first.a, first.b, N * 8, first.adds != 0};
        for (int t = 0; t < 128; ++t) {
            const call& one = *(call*)slots[t];
            if (one.a != p.a || one.b != p.b || (one.adds != 0) != p.adds) emu::fail("a warpgroup's threads disagree on a product");
            p.sums[t] = one.d;
        }
        emu::read_rows(p, [](unsigned char* at) { emu::transfer_read_begins(at, 128); });
        emu::warpgroups[emu::now / 128].open.push_back(p);
    });
}
static inline void lp_products_commit() {
    emu::group_meet("commit", nullptr, [](void**) {
        emu::warpgroup& group = emu::warpgroups[emu::now / 128];
        group.groups.push_back(group.open), group.open.clear();
    });
}
template <int PENDING> static inline void lp_products_wait() {
    emu::group_meet("wait", nullptr, [](void**) {
        emu::warpgroup& group = emu::warpgroups[emu::now / 128];
        while (int(group.groups.size()) > PENDING) {
            for (const emu::product& p : group.groups.front()) emu::compute(p);
            group.groups.erase(group.groups.begin());
        }
    });
}
template <int REGISTERS> static inline void lp_fewer_registers() { emu::group_meet("setmaxnreg", nullptr, [](void**) {}); }
template <int REGISTERS> static inline void lp_more_registers() { emu::group_meet("setmaxnreg", nullptr, [](void**) {}); }
