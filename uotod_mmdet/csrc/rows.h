// Shared code of the kernels on rows of a matrix.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

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

// The rest of a row after its last whole vector, padded with `filler`.
static inline f8 load_rest(const float *x, int64_t columns, float filler) {
    const int64_t count = columns % 8;
    if (columns >= 8) {
        return lanes8() >= 8 - (int32_t)count ? load(x + columns - 8) : all(filler);
    }
    f8 rest = all(filler);
    for (int64_t lane = 0; lane < count; ++lane) rest[lane] = x[lane];
    return rest;
}
