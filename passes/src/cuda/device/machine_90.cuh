// The instructions that only Hopper has (sm_90a): the engine that copies boxes of a matrix, barriers that count its bytes,
// and products of a warpgroup (128 threads) whose factors lie in shared memory.

// A matrix as the copy engine sees it; the driver encodes it.
struct alignas(64) LpMap {
    unsigned long long opaque[16];
};
#define LP_MAP const __grid_constant__ LpMap
LP_MACHINE void lp_barrier_init(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// What was set up so far is known to the copy engine.
LP_MACHINE void lp_barrier_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
LP_MACHINE void lp_barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the barrier wait for so many bytes.
LP_MACHINE void lp_barrier_expect(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns once the phase of this parity is over.
LP_MACHINE void lp_barrier_wait(unsigned barrier, int parity) {
    asm volatile(
        "{\n\t.reg .pred over;\n\tLP_AGAIN:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n\t"
        "@over bra.uni LP_OVER;\n\tbra.uni LP_AGAIN;\n\tLP_OVER:\n\t}" ::"r"(barrier), "r"(parity) : "memory");
}
// Copies the box at (column, row); what lies outside of the matrix becomes zero. The barrier counts the bytes.
LP_MACHINE void lp_fetch(unsigned to, const LpMap& map, int column, int row, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The same of a matrix for each head of each sequence.
LP_MACHINE void lp_fetch_part(unsigned to, const LpMap& map, int column, int head, int row, int sequence, unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
                 ::"r"(to), "l"(&map), "r"(column), "r"(head), "r"(row), "r"(sequence), "r"(barrier) : "memory");
}
// Rows of 128 bytes whose 16-byte pieces are exchanged by row (the 128-byte swizzle), eight rows to 1024 bytes.
LP_MACHINE unsigned long long lp_matrix(unsigned at) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// The same for a factor with one row per step of depth, in blocks of 64 columns that are so many bytes apart.
LP_MACHINE unsigned long long lp_turned(unsigned at, unsigned between) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | (unsigned long long)(between >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
LP_MACHINE void lp_products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LP_MACHINE void lp_products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
LP_MACHINE void lp_products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// The threads of a warpgroup meet.
LP_MACHINE void lp_group_meet() { asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory"); }
// Registers go from the warpgroup that only starts copies to those that multiply.
template <int REGISTERS>
LP_MACHINE void lp_fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS>
LP_MACHINE void lp_more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
