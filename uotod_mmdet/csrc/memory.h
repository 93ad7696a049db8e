// Fewer page faults for large results.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Ask for huge pages behind a result that is about to be written: memory that the process has not touched yet then
// comes in pieces of 2 MB, not of 4 KB. Advice only; memory that is there already, and other systems, ignore it.
static inline void expect_writes(void *start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 1 << 21, begin = ((uintptr_t)start + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
    if (start && begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}
