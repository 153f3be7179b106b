// Hopper's instructions on a host: the engine that copies boxes, the barriers that count its bytes, products of warpgroups.
//
// Everything in the background happens as late as the rules allow: a box lands when somebody waits for its barrier and all
// arrivals are in, a product is computed when its group is waited for. A box may not begin to land where a product still
// reads, nor a product read where a box is under way.
#include <map>

// What the driver would encode; the same bytes as the host writes (mod.rs). Without heads it is one matrix.
struct alignas(64) LpMap {
    unsigned long long address, rows, cols, pitch_bytes, box_rows, box_cols, heads, sequences, rest[8];
};
#define LP_MAP const LpMap

namespace emu {
struct box { unsigned to; LpMap map; int column, row, head, sequence; };
struct barrier { int arrivals = 0, arrived = 0; long bytes = 0, phase = 0; std::vector<box> boxes; };
static std::map<unsigned, barrier> barriers;
// A product's left factor lies in shared memory or in the threads' registers; a turned factor has one row per step of depth.
struct product {
    float* sums[128]; unsigned long long a, b; int columns; bool adds, a_turned, b_turned, held; unsigned registers[128][4];
};
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
        const bool part = b.head >= 0 && b.head < long(m.heads) && b.sequence >= 0 && b.sequence < long(m.sequences);
        if (row >= 0 && row < long(m.rows) && col >= 0 && col < long(m.cols) && (part || m.heads == 0)) {
            const long below = b.sequence * long(m.rows) + row, beside = b.head * long(m.cols) + col;
            const unsigned char* from = (const unsigned char*)m.address + below * m.pitch_bytes + beside * 2;
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
// A factor's tile in shared memory: its first byte, as the instruction's description has it. The canonical layouts are those
// of the PTX ISA, "Asynchronous Warpgroup Level Canonical Layouts", with the 128-byte swizzle.
static unsigned matrix_at(unsigned long long d) {
    if (d >> 62 != 1 || (d >> 32 & 0x3fff) != 64) fail("a matrix of another layout");
    return unsigned(d & 0x3fff) << 4;
}
// Bytes between blocks of 64 columns of a turned factor.
static unsigned between(unsigned long long d) { return unsigned(d >> 16 & 0x3fff) << 4; }
static float element(unsigned long long d, bool turned, int row, int k) {
    const unsigned start = matrix_at(d);
    const unsigned at = turned ? swizzled(start + row / 64 * between(d) + k / 8 * 1024 + k % 8 * 128 + row % 64 * 2)
                               : swizzled(start + row / 8 * 1024 + row % 8 * 128 + k * 2);
    if (at + 2 > shared.n) fail("shared address out of bounds");
    unsigned short bits;
    memcpy(&bits, shared.data() + at, 2);
    return __uint_as_float(unsigned(bits) << 16);
}
// Every row of 128 bytes that a product reads a part of.
template <typename F> static void read_factor(unsigned long long d, bool turned, int rows, F&& each) {
    const unsigned start = matrix_at(d) / 128 * 128;
    if (!turned) for (int row = 0; row < rows; ++row) each(shared.data() + start + row * 128);
    else for (int block = 0; block < rows; block += 64) for (int k = 0; k < 16; ++k) each(shared.data() + start + block / 64 * between(d) + k * 128);
}
template <typename F> static void read_rows(const product& p, F&& each) {
    if (!p.held) read_factor(p.a, p.a_turned, 64, each);
    read_factor(p.b, p.b_turned, p.columns, each);
}
// Registers of the left factor: lane / 4 and eight below it, pairs of columns, the second eight columns behind.
static float held(const product& p, int row, int k) {
    const unsigned word = p.registers[row / 16 * 32 + row % 8 * 4 + k % 8 / 2][row % 16 / 8 + k / 8 * 2];
    return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
}
static void compute(const product& p) {
    hush itself;
    static float A[64][16], B[16][256];
    for (int k = 0; k < 16; ++k) {
        for (int row = 0; row < 64; ++row) A[row][k] = p.held ? held(p, row, k) : element(p.a, p.a_turned, row, k);
        for (int col = 0; col < p.columns; ++col) B[k][col] = element(p.b, p.b_turned, col, k);
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
namespace emu {
static void fetch(const box& b, unsigned barrier) {
    if (b.to % 1024) fail("a box begins within a swizzled row");
    const size_t bytes = b.map.box_rows * b.map.box_cols * 2;
    in_shared(b.to, bytes);
    transfer_begins(shared.data() + b.to, bytes);
    barrier_at(barrier).boxes.push_back(b);
}
struct product_call { float* d; unsigned long long a, b; int adds; const unsigned* held; bool a_turned, b_turned; int columns; };
static void product_begins(product_call c) {
    group_meet("product", &c, [](void** slots) {
        const product_call& first = *(product_call*)slots[0];
        product p = {{}, first.a, first.b, first.columns, first.adds != 0, first.a_turned, first.b_turned, first.held != nullptr, {}};
        for (int t = 0; t < 128; ++t) {
            const product_call& one = *(product_call*)slots[t];
            if (one.a != p.a || one.b != p.b || (one.adds != 0) != p.adds) fail("a warpgroup's threads disagree on a product");
            p.sums[t] = one.d;
            if (p.held) memcpy(p.registers[t], one.held, 16);
        }
        read_rows(p, [](unsigned char* at) { transfer_read_begins(at, 128); });
        warpgroups[now / 128].open.push_back(p);
    });
}
}  // namespace emu
static inline void lp_fetch(unsigned to, const LpMap& map, int column, int row, unsigned barrier) {
    if (map.heads) emu::fail("a box of a matrix of heads without its head");
    emu::fetch({to, map, column, row, 0, 0}, barrier);
}
static inline void lp_fetch_part(unsigned to, const LpMap& map, int column, int head, int row, int sequence, unsigned barrier) {
    if (!map.heads) emu::fail("a head of a matrix that has none");
    emu::fetch({to, map, column, row, head, sequence}, barrier);
}
static inline unsigned long long lp_matrix(unsigned at) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
static inline unsigned long long lp_turned(unsigned at, unsigned between) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | (unsigned long long)(between >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
static inline void lp_products_begin() {}
template <bool A_TURNED = false, bool B_TURNED = false, int N>
static void lp_product_64(float (&d)[N][4], unsigned long long a, unsigned long long b, int adds) {
    emu::product_begins({&d[0][0], a, b, adds, nullptr, A_TURNED, B_TURNED, N * 8});
}
template <bool B_TURNED = false, int N>
static void lp_product_held(float (&d)[N][4], const unsigned (&a)[4], unsigned long long b, int adds) {
    emu::product_begins({&d[0][0], 0, b, adds, a, false, B_TURNED, N * 8});
}
// The threads of a warpgroup meet.
static inline void lp_group_meet() {
    emu::group_meet("a warpgroup's barrier", nullptr, [](void**) {
        for (int warp = emu::now / 128 * 4; warp < emu::now / 128 * 4 + 4; ++warp) ++emu::warp_spans[warp];
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
