// The memory of an emulated GPU, in a process of its own: commands come in as 64-bit words, answers go out.
//
// Every allocation starts as NaN and lies between guards, which must stay as they are; copies must stay within one
// allocation. What is wrong is said on stderr and ends the process.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <string>
#include <sys/mman.h>
#include <vector>

typedef uint64_t word;
typedef void (*launch_t)(unsigned, const unsigned*, const unsigned*, size_t, bool, void**);
constexpr size_t GUARD = 1024;
static std::map<word, size_t> allocations;
static std::vector<launch_t> modules;
// Addresses of the device; memory stands behind those that are used. No address is given twice.
size_t emu_memory_bytes = size_t(1) << 38;
unsigned char* emu_memory =
    (unsigned char*)mmap(nullptr, emu_memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
static size_t given = 0;

[[noreturn]] static void fail(const std::string& why) {
    fprintf(stderr, "%s\n", why.c_str());
    exit(3);
}
static size_t room(size_t size) { return (size + 255) / 256 * 256; }
static void take(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) exit(0);
}
static word number() { word x; take(&x, 8); return x; }
static void answer(word x) { fwrite(&x, 8, 1, stdout); }
// Whether so many bytes belong to one allocation. Kernels call this for every access; the last answer is kept.
static word known_start = 1, known_end = 0;
extern "C" bool emu_allocated(const void* from, size_t bytes) {
    const word at = word(from);
    if (at >= known_start && at + bytes <= known_end) return true;
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return false;
    --next;
    known_start = next->first, known_end = known_start + next->second;
    return at + bytes <= known_end;
}
static unsigned char* within(word at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) fail("an address of no allocation");
    auto [start, size] = *--next;
    if (at + bytes > start + size) fail("a copy beyond an allocation");
    return (unsigned char*)at;
}
static void check(word start, size_t size) {
    const unsigned char* whole = (const unsigned char*)start - GUARD;
    const size_t all = room(size) + 2 * GUARD;
    for (size_t i = 0; i < all; i = i + 1 == GUARD ? GUARD + size : i + 1) {
        if (whole[i] == 0xff) continue;
        fail("write outside of an allocation of " + std::to_string(size) + " bytes, at byte " +
             std::to_string((long long)i - (long long)GUARD));
    }
}
static word allocate(size_t size) {
    const size_t all = room(size) + 2 * GUARD;
    if (emu_memory == MAP_FAILED || given + all > emu_memory_bytes) fail("out of memory");
    unsigned char* whole = emu_memory + given;
    given += (all + 4095) / 4096 * 4096;
    memset(whole, 0xff, room(size) + 2 * GUARD);
    allocations[word(whole + GUARD)] = size;
    return word(whole + GUARD);
}
static void release(word at) {
    auto found = allocations.find(at);
    if (found == allocations.end()) fail("a release of no allocation");
    check(at, found->second);
    madvise((unsigned char*)at - GUARD, (room(found->second) + 2 * GUARD + 4095) / 4096 * 4096, MADV_DONTNEED);
    allocations.erase(found);
    known_start = 1, known_end = 0;
}
static word load(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(dlerror());
    modules.push_back((launch_t)dlsym(library, "emu_launch"));
    return modules.size() - 1;
}
static void launch() {
    const word module = number(), index = number();
    unsigned grid[3], block[3];
    for (unsigned& x : grid) x = number();
    for (unsigned& x : block) x = number();
    const word shared = number(), backwards = number(), count = number();
    std::vector<void*> args(count);
    for (void*& at : args) at = within(number(), 0);
    modules.at(module)(index, grid, block, shared, backwards != 0, args.data());
    for (auto [start, size] : allocations) check(start, size);
}

int main() {
    for (;;) {
        const word command = number();
        if (command == 'A') answer(allocate(number()));
        if (command == 'F') release(number()), answer(0);
        if (command == 'L') {
            std::string path(number(), ' ');
            take(path.data(), path.size());
            answer(load(path));
        }
        if (command == 'X') launch(), answer(0);
        if (command == 'S') {
            const word at = number(), byte = number(), bytes = number();
            memset(within(at, bytes), int(byte), bytes), answer(0);
        }
        if (command == 'C') {
            const word to = number(), from = number(), bytes = number();
            memmove(within(to, bytes), within(from, bytes), bytes), answer(0);
        }
        if (command == 'W') {
            const word at = number(), bytes = number();
            take(within(at, bytes), bytes), answer(0);
        }
        if (command == 'R') {
            const word at = number(), bytes = number();
            unsigned char* from = within(at, bytes);
            answer(0), fwrite(from, 1, bytes, stdout);
        }
        fflush(stdout);
    }
}
