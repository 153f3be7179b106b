// Looks at every access of a kernel to memory that other threads may see: the compiler puts a call in front of each
// (-fsanitize=thread, without its library). What is found ends the launch:
//   a race in shared memory     two threads at one place, one of them writing, and nothing between them that orders the two:
//                               __syncthreads between warps, __syncthreads or __syncwarp within one (shuffles, ldmatrix and mma
//                               order nothing); places that a copy in the background is on its way to may not be touched at all
//   a misaligned access         of 2 to 16 bytes
//   an access to device memory outside of every allocation
// Places in shared memory are looked at by pairs of bytes, the smallest that kernels use there.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// The server's memory: where it lies, and whether so many bytes belong to one allocation.
extern unsigned char* emu_memory;
extern size_t emu_memory_bytes;
extern "C" bool emu_allocated(const void* at, size_t bytes);

namespace emu {
// The thread that runs, how many reasons there are not to look, the block, and the spans between barriers.
extern int now, quiet;
extern unsigned block_now[3];
extern long span;
extern std::vector<long> warp_spans;
[[noreturn]] void fail(const char* why);
struct hush { hush() { ++quiet; } ~hush() { --quiet; } };
// Shared memory of the launch that begins: what it was given, and what kernels declare.
void watch_shared(unsigned char* from, size_t bytes, unsigned char* fixed, size_t fixed_bytes);
void access(const void* at, size_t bytes, bool writes);
// A copy in the background begins or lands: both ends count as writes of the thread that asked for it.
void copy_begins(const void* at, size_t bytes);
void copy_lands(const void* at, size_t bytes);
// Copies and reads that barriers in memory order, not those of the block: a copy may not begin where one is under way or a
// read is, a read not where a copy is under way.
void transfer_begins(const void* at, size_t bytes);
void transfer_lands(const void* at, size_t bytes);
void transfer_read_begins(const void* at, size_t bytes);
void transfer_read_ends(const void* at, size_t bytes);
}  // namespace emu
