// What watch.h promises. Stands in the server, which is compiled without calls in front of accesses.
namespace emu {
constexpr int NOBODY = -1, SEVERAL = -2;
// Who was last at a place, in which span between barriers of the block and of the warp.
struct place {
    long writer_span = 0, reader_span = 0, writer_warp_span = 0, reader_warp_span = 0;
    int writer = NOBODY, reader = NOBODY, reader_warp = NOBODY, pending = 0, read = 0;
};
struct watched { unsigned char* from = nullptr; size_t bytes = 0; std::vector<place> places; };
static watched dynamic, fixed;
int now, quiet;
unsigned block_now[3];
long span = 1;
std::vector<long> warp_spans;

void fail(const char* why) {
    fprintf(stderr, "emulation: %s in thread %d of block %u,%u,%u\n", why, now, block_now[0], block_now[1], block_now[2]);
    exit(3);
}
static void watch(watched& w, unsigned char* from, size_t bytes) {
    w.from = from, w.bytes = bytes;
    w.places.assign((bytes + 1) / 2 + 1, place());
}
void watch_shared(unsigned char* from, size_t bytes, unsigned char* fixed_from, size_t fixed_bytes) {
    watch(dynamic, from, bytes), watch(fixed, fixed_from, fixed_bytes);
}
static inline place* places_of(const void* at, size_t bytes, size_t& count) {
    for (watched* w : {&dynamic, &fixed}) {
        const size_t offset = (const unsigned char*)at - w->from;
        if (offset >= w->bytes) continue;
        if (offset + bytes > w->bytes) fail("shared memory is left at its end");
        count = (offset + bytes - 1) / 2 - offset / 2 + 1;
        return &w->places[offset / 2];
    }
    return nullptr;
}
// Whether another thread's access in `other_span` is ordered before this one's.
static inline bool ordered(int other, int other_warp, long other_span, long other_warp_span) {
    if (other_span != span || other == now) return true;
    return other_warp == now / 32 && other_warp_span != warp_spans[now / 32];
}
static void saw_write(place& p) {
    if (p.writer_span == span && !ordered(p.writer, p.writer / 32, p.writer_span, p.writer_warp_span)) fail("two threads write one place in shared memory");
    if (p.reader_span == span && !ordered(p.reader, p.reader_warp, p.reader_span, p.reader_warp_span)) fail("shared memory is written while another thread reads it");
    p.writer = now, p.writer_span = span, p.writer_warp_span = warp_spans[now / 32];
}
static void saw_read(place& p) {
    if (p.writer_span == span && !ordered(p.writer, p.writer / 32, p.writer_span, p.writer_warp_span)) fail("shared memory is read while another thread writes it");
    const long mine = warp_spans[now / 32];
    if (p.reader_span != span) p.reader = now, p.reader_warp = now / 32;
    else if (p.reader_warp != now / 32) p.reader = p.reader_warp = SEVERAL;
    else if (p.reader_warp_span != mine) p.reader = now;
    else if (p.reader != now) p.reader = SEVERAL;
    p.reader_span = span, p.reader_warp_span = mine;
}
void access(const void* at, size_t bytes, bool writes) {
    if (quiet) return;
    size_t count;
    if (place* p = places_of(at, bytes, count)) {
        for (size_t i = 0; i < count; ++i) {
            if (p[i].pending) fail("shared memory is used while a copy to it is under way");
            if (p[i].read && writes) fail("shared memory is written while a product reads it");
            writes ? saw_write(p[i]) : saw_read(p[i]);
        }
    } else if (size_t((const unsigned char*)at - emu_memory) < emu_memory_bytes) {
        if (!emu_allocated(at, bytes)) fail(writes ? "a write outside of every allocation" : "a read outside of every allocation");
    }
}
static void aligned_access(const void* at, size_t bytes, bool writes) {
    const bool device = size_t((const unsigned char*)at - emu_memory) < emu_memory_bytes || size_t((const unsigned char*)at - dynamic.from) < dynamic.bytes;
    if (device && !quiet && uintptr_t(at) % bytes) fail("a misaligned access");
    access(at, bytes, writes);
}
void copy_begins(const void* at, size_t bytes) {
    size_t count = 0;
    place* p = places_of(at, bytes, count);
    for (size_t i = 0; i < count; ++i) {
        if (p[i].pending) fail("two copies to one place in shared memory are under way");
        saw_write(p[i]), p[i].pending = 1;
    }
}
void copy_lands(const void* at, size_t bytes) {
    size_t count = 0;
    place* p = places_of(at, bytes, count);
    for (size_t i = 0; i < count; ++i) p[i].pending = 0, saw_write(p[i]);
}
template <typename F> static void each_place(const void* at, size_t bytes, F&& f) {
    size_t count = 0;
    place* p = places_of(at, bytes, count);
    for (size_t i = 0; i < count; ++i) f(p[i]);
}
void transfer_begins(const void* at, size_t bytes) {
    each_place(at, bytes, [](place& p) {
        if (p.pending) fail("two copies to one place in shared memory are under way");
        if (p.read) fail("a copy begins where a product still reads");
        p = place(), p.pending = 1;
    });
}
void transfer_lands(const void* at, size_t bytes) { each_place(at, bytes, [](place& p) { p.pending = 0; }); }
void transfer_read_begins(const void* at, size_t bytes) {
    each_place(at, bytes, [](place& p) {
        if (p.pending) fail("a product reads where a copy is under way");
        ++p.read;
    });
}
void transfer_read_ends(const void* at, size_t bytes) { each_place(at, bytes, [](place& p) { --p.read; }); }
}  // namespace emu

#define EMU_HOOK extern "C"
#define EMU_ACCESS(bytes) \
    EMU_HOOK void __tsan_read##bytes(void* at) { emu::aligned_access(at, bytes, false); } \
    EMU_HOOK void __tsan_write##bytes(void* at) { emu::aligned_access(at, bytes, true); } \
    EMU_HOOK void __tsan_unaligned_read##bytes(void* at) { emu::access(at, bytes, false); } \
    EMU_HOOK void __tsan_unaligned_write##bytes(void* at) { emu::access(at, bytes, true); }
EMU_ACCESS(1) EMU_ACCESS(2) EMU_ACCESS(4) EMU_ACCESS(8) EMU_ACCESS(16)
EMU_HOOK void __tsan_read_range(void* at, size_t bytes) { emu::access(at, bytes, false); }
EMU_HOOK void __tsan_write_range(void* at, size_t bytes) { emu::access(at, bytes, true); }
EMU_HOOK void __tsan_func_entry(void*) {}
EMU_HOOK void __tsan_func_exit(void*) {}
EMU_HOOK void __tsan_init() {}
