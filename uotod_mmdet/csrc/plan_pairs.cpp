// The pairs of a plan; see uotod_mmdet/ops/plan.py.

#include <algorithm>
#include <limits>

#include "vector.h"

namespace {

// A bit for each number that is at least `least`.
inline unsigned at_least(const float *from, float least) {
    const i8 mask = load(from) >= least;
#ifdef __AVX__
    return (unsigned)_mm256_movemask_ps((__m256)mask);
#else
    unsigned bits = 0;
    for (int k = 0; k < 8; ++k) bits |= mask[k] ? 1u << k : 0;
    return bits;
#endif
}

// Calls take(j) for the numbers of a row that are at least `least`, in order.
template <class Take>
inline void each_at_least(const float *from, int64_t count, float least, Take take) {
    int64_t j = 0;
    for (; j + 8 <= count; j += 8)
        for (unsigned bits = at_least(from + j, least); bits; bits &= bits - 1) take(j + __builtin_ctz(bits));
    for (; j < count; ++j)
        if (from[j] >= least) take(j);
}

}  // namespace

// Of a plan (images, preds, columns), last column the background: in a first call, with `background` null, the number
// of pairs in each of `parts` parts of the rows. In a second call, with these counts, the pairs that weigh at least
// `least` and more than 0: prediction, ground truth and image in the flattened batch, and weight. Returns -2 if the
// counts are not of this plan.
extern "C" int uotod_plan_pairs(const float *plan, int64_t images, int64_t preds, int64_t columns, double least_,
                                int64_t *counts, int64_t parts, int64_t *rows, int64_t *gts, int64_t *of_images,
                                float *weights, int64_t pairs, float *background, int64_t entries, int threads) {
    const float least = std::max((float)least_, std::numeric_limits<float>::denorm_min());
    const int64_t total = images * preds;
    bool bad = columns < 1 || (background && entries != total);
    for (int64_t part = 0; part < parts && background; ++part) bad |= counts[part] < 0 || counts[part] > pairs;
    if (bad) return -2;
#pragma omp parallel for num_threads(threads) reduction(| : bad) schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = total * part / parts, last = total * (part + 1) / parts;
        if (!background) {  // all entries, less those of the background
            int64_t count = 0;
            for (int64_t k = first * columns; k < last * columns; ++k) count += plan[k] >= least;
            for (int64_t row = first; row < last; ++row) count -= plan[row * columns + columns - 1] >= least;
            counts[part] = count;
            continue;
        }
        int64_t k = 0;
        for (int64_t before = 0; before < part; ++before) k += counts[before];
        const int64_t end = k + counts[part];
        bad |= end > pairs;
        for (int64_t row = first; row < last && !bad; ++row) {
            const int64_t image = row / preds;
            each_at_least(plan + row * columns, columns - 1, least, [&](int64_t j) {
                if (k < end) rows[k] = row, gts[k] = image * (columns - 1) + j, of_images[k] = image;
                if (k < end) weights[k] = plan[row * columns + j];
                ++k;
            });
            background[row] = plan[row * columns + columns - 1];
        }
        bad |= k != end;
    }
    return bad ? -2 : 0;
}
