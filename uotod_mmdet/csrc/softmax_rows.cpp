// Softmax cross-entropy of rows that have several weighted labels; see uotod_mmdet/ops/softmax_rows.py and
// uotod_mmdet/ops/distribution_rows.py.

#include <cmath>

#include "rows.h"
#include "vector.h"

namespace {

// The logarithm of a sum of exponentials in two parts, as one float would lose the second beside a large first.
struct LogSum {
    float largest, rest;

    // -log of the softmax at a logit
    float minus(float logit) const { return (largest - logit) + rest; }
};

// NaN or inf where an entry is. The largest entry is taken out even if exp holds all: a loss near 0 is the rest.
inline LogSum log_sum_exp(const float *x, int64_t columns) {
    f8 most = all(-INFINITY), total = {};
    each8(x, columns, -INFINITY, [&](f8 logits, int64_t, int64_t) { most = max8(logits, most); });
    const float largest = largest8(most);
    each8(x, columns, -INFINITY, [&](f8 logits, int64_t, int64_t) { total += exp8(logits - largest); });
    return {largest, std::log(sum8(total))};
}

// to = scale * exp(x - log_sum)
inline void write_softmax(const float *x, int64_t columns, LogSum log_sum, float scale, float *to) {
    each8(x, columns, 0, [=](f8 logits, int64_t place, int64_t count) {
        store(to + place, scale * exp8((logits - log_sum.largest) - log_sum.rest), count);
    });
}

}  // namespace

// Softmax cross-entropy. Row i of scores (rows, columns) has label `background` with weight of_background[i], and the
// labels of its pairs with theirs. Writes its loss and the logarithm of the sum of its exponentials, (rows, 2); or if
// `gradient` is not null, from those logarithms the gradient of the losses times grad[i * stride].
extern "C" int uotod_softmax_rows(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                  const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                  const float *weights, int64_t pairs, float *losses, LogSum *log_sums,
                                  const float *grad, int64_t stride, float *gradient, int threads) {
    if (!inside(pair_rows, pairs, rows, threads, true) || !inside(labels, pairs, columns, threads) ||
        !inside(&background, 1, columns, 1))
        return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads;
        for (int64_t pair = first_pair(pair_rows, pairs, row), begin = pair; row < last; ++row, begin = pair) {
            const float *x = scores + row * columns, common = of_background[row];
            while (pair < pairs && pair_rows[pair] == row) ++pair;
            if (gradient) {
                float *to = gradient + row * columns, mass = common;
                for (int64_t k = begin; k < pair; ++k) mass += weights[k];
                write_softmax(x, columns, log_sums[row], grad[row * stride] * mass, to);
                to[background] -= grad[row * stride] * common;
                for (int64_t k = begin; k < pair; ++k) to[labels[k]] -= grad[row * stride] * weights[k];
            } else {
                const LogSum log_sum = log_sums[row] = log_sum_exp(x, columns);
                // A weight of 0 leaves a logit of -inf out.
                losses[row] = common != 0 ? common * log_sum.minus(x[background]) : 0.0f;
                for (int64_t k = begin; k < pair; ++k)
                    if (weights[k] != 0) losses[row] += weights[k] * log_sum.minus(x[labels[k]]);
            }
        }
    }
    return 0;
}

// Distribution Focal Loss of logits (rows, bins) towards target (rows): the labels are the two bins beside the target.
// Outputs as above.
extern "C" int uotod_distribution_rows(const float *logits, const float *target, int64_t rows, int64_t bins,
                                       float *losses, LogSum *log_sums, const float *grad, int64_t stride,
                                       float *gradient, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float *x = logits + row * bins;
        // A target outside is an error that others find; NaN counts as 0 here.
        const int64_t left = target[row] > 0 ? (int64_t)std::min(target[row], (float)(bins - 1)) : 0;
        const int64_t right = std::min(left + 1, bins - 1);
        const float share = target[row] - (float)left;
        if (gradient) {
            float *to = gradient + row * bins, scale = grad[row * stride];
            write_softmax(x, bins, log_sums[row], scale, to);
            to[left] -= scale * (1 - share), to[right] -= scale * share;
        } else {
            const LogSum log_sum = log_sums[row] = log_sum_exp(x, bins);
            losses[row] = (1 - share) * log_sum.minus(x[left]) + share * log_sum.minus(x[right]);
        }
    }
    return 0;
}
