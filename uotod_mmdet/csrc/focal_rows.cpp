// Sums of focal losses most of whose entries are background; see uotod_mmdet/ops/focal_rows.py.

#include "rows.h"
#include "vector.h"

// What an entry of no ground truth costs, p^gamma softplus(x) with p = sigmoid(x), and its slope.
static inline f8 background(f8 x, float gamma, f8 &slope) {
    const f8 t = exp8(-abs8(x)), inverse = 1.0f / ((1.0f + t) * (2.0f + t)), zero = {};
    const f8 likely = inverse * (2.0f + t), unlikely = t * likely;
    const f8 log1p = 2.0f * atanh8(t * (1.0f + t) * inverse);  // to the last digits where t is small, too
    const f8 loss = (x < zero ? zero : x) + log1p, prob = x < zero ? unlikely : likely;
    const f8 rest = x < zero ? likely : unlikely;
    const f8 factor = gamma == 2 ? prob * prob : exp8(gamma * ((x > zero ? zero : x) - log1p));
    slope = factor * (prob + gamma * loss * rest);
    return factor * loss;
}

// Sums over the rows of logits (rows, columns) of weight[i * stride] times the background's loss, but for the entries
// at `index` (ascending places in the flattened logits), whose loss and slope are given. The gradient is written
// unless it is null.
extern "C" int uotod_focal_rows(const float *logits, int64_t rows, int64_t columns, double gamma, const float *weights,
                                int64_t stride, const int64_t *index, const float *entry_losses,
                                const float *entry_slopes, int64_t entries, float *losses, float *gradient,
                                int threads) {
    if (!inside(index, entries, rows * columns, threads, true)) return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads, place = row * columns, entry = first_pair(index, entries, place);
        for (; row < last; ++row) {
            const float weight = weights[row * stride], power = (float)gamma;
            float own = 0;
            f8 sum = {};
            for (const int64_t end = (row + 1) * columns; place < end; ++place) {  // from one entry to the next
                const int64_t stop = entry < entries ? std::min(index[entry], end) : end;
                each8(logits + place, stop - place, -1e4f, [&](f8 x, int64_t from, int64_t count) {
                    f8 slope;
                    sum += background(x, power, slope);
                    if (gradient) store(gradient + place + from, weight * slope, count);
                });
                place = stop;
                if (place == end) break;
                own += entry_losses[entry];
                if (gradient) gradient[place] = entry_slopes[entry];
                ++entry;
            }
            losses[row] = weight * sum8(sum) + own;
        }
    }
    return 0;
}
