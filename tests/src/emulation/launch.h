// A kernel with its arguments as addresses: pointers as they are, anything else by value.
typedef void (*emu_call)(void**);
template <typename A> struct emu_argument { static const A& of(void* p) { return *(const A*)p; } };
template <typename T> struct emu_argument<T*> { static T* of(void* p) { return (T*)p; } };
template <typename... A, size_t... I>
static void emu_spread(void (*kernel)(A...), void** p, std::index_sequence<I...>) { kernel(emu_argument<A>::of(p[I])...); }
template <typename... A>
static void emu_start(void (*kernel)(A...), void** p) { emu_spread(kernel, p, std::index_sequence_for<A...>()); }

// What the process that holds the memory calls. The table of kernels follows this file and the kernels.
static emu_call emu_kernel(unsigned index);
extern "C" void emu_launch(
    unsigned index, const unsigned* grid, const unsigned* block, size_t shared_bytes, bool backwards, void** args) {
    const emu_dim blocks = {grid[0], grid[1], grid[2]}, threads = {block[0], block[1], block[2]};
    emu::launch(blocks, threads, shared_bytes, backwards, emu_kernel(index), args);
}
