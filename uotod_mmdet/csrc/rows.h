// Shared code of the kernels on rows of a matrix and their pairs with columns.
#pragma once

#include <algorithm>
#include <cstdint>

// The first of the pairs of a row.
static inline int64_t first_pair(const int64_t *rows, int64_t pairs, int64_t row) {
    return std::lower_bound(rows, rows + pairs, row) - rows;
}

// Whether all indices lie in [0, end), and are in ascending order where that is asked for: no sign bit is set below.
static inline bool inside(const int64_t *indices, int64_t count, int64_t end, bool ascending = false) {
    uint64_t bad = 0;
    for (int64_t k = 0; k < count; ++k) bad |= (uint64_t)indices[k] | ((uint64_t)end - 1 - (uint64_t)indices[k]);
    for (int64_t k = 1; ascending && k < count; ++k) bad |= (uint64_t)indices[k] - (uint64_t)indices[k - 1];
    return !(bad >> 63);
}
