// Runs generated CUDA C++ on a host, to see whether it computes the right numbers.
//
// Every CUDA thread of a block is a coroutine; blocks run one after another. A coroutine runs until it meets a barrier or a
// warp instruction, which are computed when all have arrived. cp.async is carried out as late as the rules allow (at the wait
// for its group), shared memory starts as NaN, and the order in which threads run is a parameter, so that a missing wait or
// barrier shows. Every access is looked at beside that (watch.h, which stands before this file): races in shared memory,
// alignment, bounds.
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
#define __shared__ static __attribute__((section("lp_shared")))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define LP_MACHINE static inline
#define LP_DYNAMIC_SHARED(name) unsigned char* const name = emu::shared.data()

// Where the linker puts the kernels' own shared arrays.
extern "C" __attribute__((visibility("hidden"), weak)) unsigned char __start_lp_shared[], __stop_lp_shared[];
struct emu_dim { unsigned x, y, z; };
static inline void emu_aligned(const void* at, size_t bytes) { if (uintptr_t(at) % bytes) emu::fail("a misaligned access"); }
// Vectors are one access on the GPU: where one is copied to or from must be aligned.
#define EMU_VECTOR(name, T, BYTES, FIELDS, TAKEN, SET, COPY) \
    struct alignas(BYTES) name { \
        T FIELDS; \
        name() = default; \
        name(TAKEN) { SET; } \
        name(const name& o) { emu_aligned(&o, BYTES), emu_aligned(this, BYTES); COPY; } \
        name& operator=(const name& o) { emu_aligned(&o, BYTES), emu_aligned(this, BYTES); COPY; return *this; } \
    };
#define EMU_COMMA ,
EMU_VECTOR(uint2, unsigned, 8, x EMU_COMMA y, unsigned a EMU_COMMA unsigned b, (x = a, y = b), (x = o.x, y = o.y))
EMU_VECTOR(float2, float, 8, x EMU_COMMA y, float a EMU_COMMA float b, (x = a, y = b), (x = o.x, y = o.y))
EMU_VECTOR(uint4, unsigned, 16, x EMU_COMMA y EMU_COMMA z EMU_COMMA w, unsigned a EMU_COMMA unsigned b EMU_COMMA unsigned c EMU_COMMA unsigned d,
           (x = a, y = b, z = c, w = d), (x = o.x, y = o.y, z = o.z, w = o.w))
EMU_VECTOR(float4, float, 16, x EMU_COMMA y EMU_COMMA z EMU_COMMA w, float a EMU_COMMA float b EMU_COMMA float c EMU_COMMA float d,
           (x = a, y = b, z = c, w = d), (x = o.x, y = o.y, z = o.z, w = o.w))
static inline float4 make_float4(float x, float y, float z, float w) { return float4(x, y, z, w); }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2(x, y); }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4(x, y, z, w); }
static inline float2 make_float2(float x, float y) { return float2(x, y); }
static emu_dim threadIdx, blockIdx, blockDim, gridDim;

static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __int_as_float(int i) { return __uint_as_float(unsigned(i)); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long both = x | (unsigned long long)y << 32;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) out |= unsigned(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace emu {
struct aligned_bytes {
    unsigned char* p = nullptr; size_t n = 0;
    void resize(size_t bytes) { free(p); n = bytes; p = (unsigned char*)aligned_alloc(1024, (bytes + 1023) / 1024 * 1024 + 1024); }
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
static int alive;
static long progress;
static void (*entry)(void**);
static void** entry_args;

static void yield() { if (_setjmp(fibers[now].here) == 0) _longjmp(scheduler, 1); }
template <typename F> static void meet(meeting& m, int slot, int expected, const char* what, void* data, F&& all) {
    if (m.arrived && m.what != what) fail("threads meet at different instructions");
    m.what = what; m.slots[slot] = data; ++progress;
    if (++m.arrived == expected) { hush all_of_them; all(m.slots); m.arrived = 0; ++m.generation; return; }
    for (long seen = m.generation; m.generation == seen;) yield();
}
template <typename F> static void warp_meet(const char* what, void* data, F&& all) {
    meet(warps[now / 32], now % 32, 32, what, data, all);
}
static void body() { entry(entry_args); fibers[now].finished = true; ++progress; _longjmp(scheduler, 1); }
static void hopper_begins(int threads);
static void run_block(int threads, bool backwards) {
    fibers.resize(threads); warps.assign(threads / 32, meeting()); block = meeting();
    memset(shared.data(), 0xff, shared.n);
    memset(__start_lp_shared, 0xff, __stop_lp_shared - __start_lp_shared);
    ++span; warp_spans.assign(threads / 32, 0);
    hopper_begins(threads);
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
    watch_shared(shared.data(), shared_bytes, __start_lp_shared, __stop_lp_shared - __start_lp_shared);
    if (threads.x * threads.y * threads.z % 32) { fprintf(stderr, "a block of partial warps\n"); exit(3); }
    for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        block_now[0] = x, block_now[1] = y, block_now[2] = z;
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
    access(in_shared(from, 16), 16, false);
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
    emu::meet(emu::block, emu::now, emu::alive, "__syncthreads", nullptr, [](void**) { ++emu::span; });
}
static inline void __syncwarp() { emu::warp_meet("__syncwarp", nullptr, [](void**) { ++emu::warp_spans[emu::now / 32]; }); }
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
    if (uintptr_t(from) % 16) emu::fail("a misaligned access");
    emu::access(from, 16, false);
    return *(const uint4*)from;
}
// Blocks run one after another: a turn that has not come when it is waited for never comes.
static inline int lp_draw(int* counter) { return (*counter)++; }
static inline void lp_await(const int* turn, int mine) { if (*turn != mine) emu::fail("a block waits for one that has not run"); }
static inline void lp_pass(int* turn, int next) { *turn = next; }
static inline unsigned lp_shared(const void* p) { return unsigned((const unsigned char*)p - emu::shared.data()); }
static inline void lp_copy16(unsigned to, const void* from, int bytes) {
    if (bytes < 0 || bytes > 16) emu::fail("bad copy size");
    if (bytes && uintptr_t(from) % 16) emu::fail("a misaligned access");
    emu::copy_begins(emu::in_shared(to, 16), 16);
    if (bytes && !emu_allocated(from, bytes)) emu::fail("a copy from outside of every allocation");
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
            emu::hush itself;
            emu::copy_lands(emu::shared.data() + c.to, 16);
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

