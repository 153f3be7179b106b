// Sums over a block, known to every thread afterwards.
template <int THREADS>
LP_DEVICE float lp_block_sum(float x, float* partial) {
    x = lp_warp_sum(x);
    if (THREADS == 32) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return lp_warp_sum(threadIdx.x % 32 < THREADS / 32 ? partial[threadIdx.x % 32] : 0.0f);
}
template <int THREADS>
LP_DEVICE float lp_block_max(float x, float* partial) {
    x = lp_warp_max(x);
    if (THREADS == 32) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return lp_warp_max(threadIdx.x % 32 < THREADS / 32 ? partial[threadIdx.x % 32] : -LP_INFINITY);
}
