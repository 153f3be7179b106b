// Runs generated CUDA C++ on a host, to see whether it computes the right numbers.
//
// Every CUDA thread of a block is a coroutine; blocks run one after another. A coroutine runs until it meets a barrier or a
// warp instruction, which are computed when all have arrived. cp.async is carried out as late as the rules allow (at the wait
// for its group), shared memory starts as NaN, and the order in which threads run is a parameter, so that a missing wait or
// barrier shows. Addresses are checked for alignment and, in shared memory, for bounds.
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define LAPIDARY_EMULATION 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define LP_MACHINE static inline
#define LP_DYNAMIC_SHARED(name) unsigned char* const name = emu::shared.data()

struct emu_dim { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static emu_dim threadIdx, blockIdx, blockDim, gridDim;

static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __int_as_float(int i) { return __uint_as_float(unsigned(i)); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace emu {
struct aligned_bytes {
    unsigned char* p = nullptr; size_t n = 0;
    void resize(size_t bytes) { free(p); n = bytes; p = (unsigned char*)aligned_alloc(128, (bytes + 127) / 128 * 128 + 128); }
    unsigned char* data() { return p; }
};
static aligned_bytes shared;
struct copy { unsigned to; const unsigned char* from; int bytes; };
struct fiber {
    jmp_buf here; ucontext_t start; std::vector<char> stack; bool started = false, finished = false;
    emu_dim thread; std::vector<std::vector<copy>> groups; std::vector<copy> open;
};
struct meeting { int arrived = 0; long generation = 0; const char* what = nullptr; void* slots[1024]; };
static std::vector<fiber> fibers;
static std::vector<meeting> warps;
static meeting block;
static jmp_buf scheduler;
static int now, alive;
static long progress;
static void (*entry)(void**);
static void** entry_args;

[[noreturn]] static void fail(const char* why) {
    fprintf(stderr, "emulation: %s in thread %d of block %u,%u,%u\n", why, now, blockIdx.x, blockIdx.y, blockIdx.z);
    exit(3);
}
static void yield() { if (_setjmp(fibers[now].here) == 0) _longjmp(scheduler, 1); }
template <typename F> static void meet(meeting& m, int slot, int expected, const char* what, void* data, F&& all) {
    if (m.arrived && m.what != what) fail("threads meet at different instructions");
    m.what = what; m.slots[slot] = data; ++progress;
    if (++m.arrived == expected) { all(m.slots); m.arrived = 0; ++m.generation; return; }
    for (long seen = m.generation; m.generation == seen;) yield();
}
template <typename F> static void warp_meet(const char* what, void* data, F&& all) {
    meet(warps[now / 32], now % 32, 32, what, data, all);
}
static void body() { entry(entry_args); fibers[now].finished = true; ++progress; _longjmp(scheduler, 1); }
static void run_block(int threads, bool backwards) {
    fibers.resize(threads); warps.assign(threads / 32, meeting()); block = meeting();
    memset(shared.data(), 0xff, shared.n);
    alive = threads;
    for (int t = 0; t < threads; ++t) {
        fiber& f = fibers[t];
        f.started = f.finished = false; f.groups.clear(); f.open.clear();
        f.thread = {unsigned(t) % blockDim.x, unsigned(t) / blockDim.x, 0};
        f.stack.resize(96 << 10);
    }
    while (alive > 0) {
        const long before = progress;
        for (int i = 0; i < threads; ++i) {
            now = backwards ? threads - 1 - i : i;
            fiber& f = fibers[now];
            if (f.finished) continue;
            threadIdx = f.thread;
            if (_setjmp(scheduler) == 0) {
                if (f.started) _longjmp(f.here, 1);
                f.started = true;
                getcontext(&f.start);
                f.start.uc_stack.ss_sp = f.stack.data(); f.start.uc_stack.ss_size = f.stack.size();
                makecontext(&f.start, body, 0);
                setcontext(&f.start);
            }
            if (fibers[now].finished) --alive;
        }
        if (alive > 0 && progress == before) fail("deadlock");
    }
}
static void launch(emu_dim grid, emu_dim threads, size_t shared_bytes, bool backwards, void (*call)(void**), void** p) {
    gridDim = grid; blockDim = threads; entry = call; entry_args = p; shared.resize(shared_bytes);
    if (threads.x * threads.y * threads.z % 32) { fprintf(stderr, "a block of partial warps\n"); exit(3); }
    for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(threads.x * threads.y * threads.z, backwards);
    }
}
static unsigned short round_bf16(float f) {
    unsigned u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
static unsigned char* in_shared(unsigned at, unsigned bytes) {
    if (at % 16) fail("misaligned shared address");
    if (at + bytes > shared.n) fail("shared address out of bounds");
    return shared.data() + at;
}
static void load_matrices(unsigned (&r)[4], unsigned from, bool transposed) {
    struct call { unsigned* r; unsigned from; bool transposed; } c = {r, from, transposed};
    warp_meet("ldmatrix", &c, [](void** slots) {
        for (int lane = 0; lane < 32; ++lane) for (int m = 0; m < 4; ++m) {
            call& me = *(call*)slots[lane];
            unsigned short v[2];
            for (int i = 0; i < 2; ++i) {
                const int row = me.transposed ? lane % 4 * 2 + i : lane / 4, col = me.transposed ? lane / 4 : lane % 4 * 2 + i;
                memcpy(&v[i], in_shared(((call*)slots[m * 8 + row])->from, 16) + 2 * col, 2);
            }
            me.r[m] = v[0] | unsigned(v[1]) << 16;
        }
    });
}
}  // namespace emu

static inline void __syncthreads() {
    emu::meet(emu::block, emu::now, emu::alive, "__syncthreads", nullptr, [](void**) {});
}
static inline void __syncwarp() { emu::warp_meet("__syncwarp", nullptr, [](void**) {}); }
template <typename T> static T __shfl_xor_sync(unsigned, T x, int lanes) {
    struct call { T in, out; int lanes; } c = {x, x, lanes};
    emu::warp_meet("shuffle", &c, [](void** slots) {
        for (int i = 0; i < 32; ++i) ((call*)slots[i])->out = ((call*)slots[i ^ ((call*)slots[i])->lanes])->in;
    });
    return c.out;
}
static inline unsigned lp_pack(float low, float high) { return emu::round_bf16(low) | unsigned(emu::round_bf16(high)) << 16; }
static inline float lp_exp2(float x) { return exp2f(x); }
static inline uint4 lp_stream16(const void* from) {
    if (uintptr_t(from) % 16) emu::fail("misaligned global address");
    return *(const uint4*)from;
}
static inline unsigned lp_shared(const void* p) { return unsigned((const unsigned char*)p - emu::shared.data()); }
static inline void lp_copy16(unsigned to, const void* from, int bytes) {
    if (bytes < 0 || bytes > 16) emu::fail("bad copy size");
    if (bytes && uintptr_t(from) % 16) emu::fail("misaligned global address");
    emu::in_shared(to, 16);
    emu::fibers[emu::now].open.push_back({to, (const unsigned char*)from, bytes});
}
static inline void lp_copy_commit() {
    auto& f = emu::fibers[emu::now];
    f.groups.push_back(f.open); f.open.clear();
}
template <int PENDING> static inline void lp_copy_wait() {
    auto& groups = emu::fibers[emu::now].groups;
    while (int(groups.size()) > PENDING) {
        for (auto& c : groups.front()) {
            memset(emu::shared.data() + c.to, 0, 16);
            memcpy(emu::shared.data() + c.to, c.from, c.bytes);
        }
        groups.erase(groups.begin());
    }
}
static inline void lp_load_matrices(unsigned (&r)[4], unsigned from) { emu::load_matrices(r, from, false); }
static inline void lp_load_transposed(unsigned (&r)[4], unsigned from) { emu::load_matrices(r, from, true); }
static inline void lp_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct call { float* d; const unsigned* a; unsigned b[2]; } c = {d, a, {b0, b1}};
    emu::warp_meet("mma", &c, [](void** slots) {
        static float A[16][16], B[16][8];
        auto half = [](unsigned word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); };
        for (int lane = 0; lane < 32; ++lane) {
            call& me = *(call*)slots[lane];
            for (int r = 0; r < 4; ++r) for (int i = 0; i < 2; ++i)
                A[lane / 4 + (r & 1) * 8][lane % 4 * 2 + i + (r >> 1) * 8] = half(me.a[r], i);
            for (int r = 0; r < 2; ++r) for (int i = 0; i < 2; ++i) B[lane % 4 * 2 + i + r * 8][lane / 4] = half(me.b[r], i);
        }
        for (int lane = 0; lane < 32; ++lane) for (int r = 0; r < 4; ++r) {
            const int row = lane / 4 + (r >> 1) * 8, col = lane % 4 * 2 + (r & 1);
            float sum = ((call*)slots[lane])->d[r];
            for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][col];
            ((call*)slots[lane])->d[r] = sum;
        }
    });
}

// A kernel with its arguments as addresses.
typedef void (*emu_call)(void**);
template <typename... A, size_t... I>
static void emu_spread(void (*kernel)(A...), void** p, std::index_sequence<I...>) { kernel((A)p[I]...); }
template <typename... A>
static void emu_start(void (*kernel)(A...), void** p) { emu_spread(kernel, p, std::index_sequence_for<A...>()); }

// What the process that holds the memory calls. The table of kernels follows this file and the kernels.
static emu_call emu_kernel(unsigned index);
extern "C" void emu_launch(
    unsigned index, const unsigned* grid, const unsigned* block, size_t shared_bytes, bool backwards, void** args) {
    const emu_dim blocks = {grid[0], grid[1], grid[2]}, threads = {block[0], block[1], block[2]};
    emu::launch(blocks, threads, shared_bytes, backwards, emu_kernel(index), args);
}
