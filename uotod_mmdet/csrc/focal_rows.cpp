// Sums of focal losses most of whose entries are background; see uotod_mmdet/ops/focal_rows.py.

#include <new>
#include <vector>

#include "rows.h"

namespace {

// What an entry of no ground truth costs, p^gamma softplus(x) with p = sigmoid(x), and its slope.
struct Background {
    float gamma;

    inline f8 operator()(f8 x, f8 &slope) const {
        const f8 t = exp8(-abs8(x)), inverse = 1.0f / ((1.0f + t) * (2.0f + t));
        const f8 likely = inverse * (2.0f + t), unlikely = t * likely;
        const f8 log1p = 2.0f * atanh8(t * (1.0f + t) * inverse);  // to the last digits where t is small, too
        const f8 zero = {};
        const f8 loss = (x < zero ? zero : x) + log1p, prob = x < zero ? unlikely : likely;
        const f8 rest = x < zero ? likely : unlikely;
        const f8 factor = gamma == 2 ? prob * prob : exp8(gamma * ((x > zero ? zero : x) - log1p));
        slope = factor * (prob + gamma * loss * rest);
        return factor * loss;
    }
};

}  // namespace

// Sums over the rows of logits (rows, columns) of weight[i * stride] times the background's loss, but for the entries
// at `index` (ascending places in the flattened logits), whose loss and slope are given. The gradient is written
// unless it is null.
extern "C" int uotod_focal_rows(const float *logits, int64_t rows, int64_t columns, double gamma, const float *weights,
                                int64_t stride, const int64_t *index, const float *entry_losses,
                                const float *entry_slopes, int64_t entries, float *losses, float *gradient,
                                int threads) try {
    if (!inside(index, entries, rows * columns, true)) return -2;
    const Background background{(float)gamma};
    const int64_t whole = columns / 8 * 8;
    std::vector<float> buffers(threads * (columns + 8));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *buffer = buffers.data() + part * (columns + 8);
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads, entry = first_pair(index, entries, row * columns);
        for (; row < last; ++row) {
            const float *x = logits + row * columns;
            const int64_t begin = entry, start = row * columns;
            while (entry < entries && index[entry] < start + columns) ++entry;
            if (begin < entry) {  // entries of ground truths count 0 here: exp(-1e4) is 0
                std::copy(x, x + columns, buffer);
                for (int64_t k = begin; k < entry; ++k) buffer[index[k] - start] = -1e4f;
                x = buffer;
            }
            const float weight = weights[row * stride];
            float *to = gradient ? gradient + start : nullptr;
            f8 sum = {}, slope;
            for (int64_t c = 0; c < whole; c += 8) {
                sum += background(load(x + c), slope);
                if (to) store(to + c, weight * slope);
            }
            if (whole < columns) {
                sum += background(load_rest(x, columns, -1e4f), slope);
                slope *= weight;
                const int64_t offset = columns >= 8 ? columns - 8 : 0;
                for (int64_t c = whole; to && c < columns; ++c) to[c] = slope[c - offset];
            }
            float loss = weight * sum8(sum);
            for (int64_t k = begin; k < entry; ++k) {
                loss += entry_losses[k];
                if (to) to[index[k] - start] = entry_slopes[k];
            }
            losses[row] = loss;
        }
    }
    return 0;
} catch (const std::bad_alloc &) {
    return -1;
}
