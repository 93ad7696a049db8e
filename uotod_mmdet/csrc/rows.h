// Shared code of the kernels on rows of a matrix and their pairs with columns.
#pragma once

#include <algorithm>
#include <cstdint>

// The first of the pairs of a row.
static inline int64_t first_pair(const int64_t *rows, int64_t pairs, int64_t row) {
    return std::lower_bound(rows, rows + pairs, row) - rows;
}

// Whether all indices lie in [0, end), and are in ascending order where that is asked for: no sign bit is set below.
static inline bool inside(const int64_t *indices, int64_t count, int64_t end, int threads, bool ascending = false) {
    const uint64_t *index = (const uint64_t *)indices, most = (uint64_t)end - 1;
    uint64_t bad = count ? index[0] | (most - index[0]) | index[count - 1] | (most - index[count - 1]) : 0;
#pragma omp parallel for simd num_threads(threads) reduction(| : bad)
    for (int64_t k = 1; k < count; ++k) bad |= index[k] | (ascending ? index[k] - index[k - 1] : most - index[k]);
    return !(bad >> 63);
}
