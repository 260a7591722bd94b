// Runs body(i) for i in [0, items) on at most `threads` OpenMP threads, or serially without OpenMP. Each thread begins with its
// own contiguous share of the items, so that the same part of a map stays with the same core from kernel to kernel; what one
// core has just written takes another one longer to read than to compute. Items are assigned one by one, and a thread without
// items takes those of others, so that a thread which loses its core only delays its own item.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dmtl {
namespace {

constexpr int64_t kSerialBelow = 16384;  // with fewer elements (or multiplications), a second thread does not pay off

struct alignas(64) Share {
    int64_t next, end;
};
constexpr int kMostShares = 64;

template <class Body>
inline void parallel_for(int64_t items, int threads, const Body& body) {
    if (threads > items) threads = static_cast<int>(items);
    if (threads <= 1) {
        for (int64_t i = 0; i < items; ++i) body(i);
        return;
    }
#if defined(_OPENMP)
    Share shares[kMostShares];
    const int count = threads < kMostShares ? threads : kMostShares;
    for (int s = 0; s < count; ++s) shares[s] = {items * s / count, items * (s + 1) / count};
#pragma omp parallel num_threads(threads)
    for (int s = 0, own = omp_get_thread_num(); s < count; ++s) {
        Share& share = shares[(own + s) % count];
        for (int64_t i; (i = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED)) < share.end;) body(i);
    }
#else
    for (int64_t i = 0; i < items; ++i) body(i);
#endif
}

// The memory of a large output usually has no pages yet, and page faults of 4 KiB each cost more than the computation. So this
// requests huge pages from the operating system, and lets one thread fault in each of them: if two threads fault on the same
// page, both clear it. The content of the memory does not change.
inline void expect_writes(void* begin, int64_t bytes, int threads = 1) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t huge = uintptr_t{1} << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + huge - 1) & ~(huge - 1);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(bytes)) & ~(huge - 1);
    if (last <= first || madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE) != 0) return;
    parallel_for(static_cast<int64_t>((last - first) / huge), threads, [first](int64_t page) {
        __atomic_fetch_or(reinterpret_cast<char*>(first + static_cast<uintptr_t>(page) * huge), 0, __ATOMIC_RELAXED);
    });
#else
    (void)begin, (void)bytes, (void)threads;
#endif
}

}  // namespace
}  // namespace dmtl
