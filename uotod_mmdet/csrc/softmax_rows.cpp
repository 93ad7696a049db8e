// Softmax cross-entropy of rows that have several weighted labels; see uotod_mmdet/ops/softmax_rows.py.

#include <cmath>

#include "rows.h"

namespace {

// The logarithm of a sum of exponentials in two parts, as one float would lose the second beside a large first.
struct LogSum {
    float largest, rest;
};

// NaN or inf where an entry is.
inline LogSum log_sum_exp(const float *x, int64_t columns) {
    const int64_t whole = columns / 8 * 8;
    const f8 rest = load_rest(x, columns, -INFINITY);
    f8 most = rest, total = {};
    for (int64_t c = 0; c < whole; c += 8) most = max8(load(x + c), most);
    const float largest = largest8(most);
    for (int64_t c = 0; c < whole; c += 8) total += exp8(load(x + c) - largest);
    if (whole < columns) total += exp8(rest - largest);
    return {largest, std::log(sum8(total))};
}

// to = scale * exp(x - log_sum)
inline void write_softmax(const float *x, int64_t columns, LogSum log_sum, float scale, float *to) {
    const int64_t whole = columns / 8 * 8;
    const auto of = [=](f8 logits) { return scale * exp8((logits - log_sum.largest) - log_sum.rest); };
    for (int64_t c = 0; c < whole; c += 8) store(to + c, of(load(x + c)));
    if (whole == columns) return;
    if (columns >= 8) {
        store(to + columns - 8, of(load(x + columns - 8)));
        return;
    }
    const f8 rest = of(load_rest(x, columns, 0.0f));
    for (int64_t c = 0; c < columns; ++c) to[c] = rest[c];
}

// The two bins beside a target, and the weight of the right one.
struct Bins {
    int64_t left, right;
    float share;
    Bins(float target, int64_t bins) {
        // Outside is an error that others find; NaN counts as 0 here.
        left = target > 0 ? (int64_t)std::min(target, (float)(bins - 1)) : 0;
        right = std::min(left + 1, bins - 1);
        share = target - (float)left;
    }
};

}  // namespace

// Softmax cross-entropy. Row i of scores (rows, columns) has label `background` with weight of_background[i], and the
// labels of its pairs with theirs. Writes its loss and the logarithm of the sum of its exponentials, (rows, 2).
extern "C" int uotod_softmax_rows(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                  const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                  const float *weights, int64_t pairs, float *losses, LogSum *log_sums, int threads) {
    if (!inside(pair_rows, pairs, rows, true) || !inside(labels, pairs, columns) || background < 0 ||
        background >= columns)
        return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads, pair = first_pair(pair_rows, pairs, row);
        for (; row < last; ++row) {
            const float *x = scores + row * columns;
            const LogSum log_sum = log_sums[row] = log_sum_exp(x, columns);
            const auto of = [=](int64_t label) { return (log_sum.largest - x[label]) + log_sum.rest; };
            // A weight of 0 leaves a logit of -inf out.
            float loss = of_background[row] != 0 ? of_background[row] * of(background) : 0.0f;
            for (; pair < pairs && pair_rows[pair] == row; ++pair)
                if (weights[pair] != 0) loss += weights[pair] * of(labels[pair]);
            losses[row] = loss;
        }
    }
    return 0;
}

// The gradient of the losses, scaled by grad[i * stride] in row i.
extern "C" int uotod_softmax_rows_gradient(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                           const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                           const float *weights, int64_t pairs, const LogSum *log_sums,
                                           const float *grad, int64_t stride, float *gradient, int threads) {
    if (!inside(pair_rows, pairs, rows, true) || !inside(labels, pairs, columns) || background < 0 ||
        background >= columns)
        return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads, pair = first_pair(pair_rows, pairs, row);
        for (; row < last; ++row) {
            const float *x = scores + row * columns, scale = grad[row * stride];
            float *to = gradient + row * columns;
            float mass = of_background[row];
            const int64_t begin = pair;
            for (; pair < pairs && pair_rows[pair] == row; ++pair) mass += weights[pair];
            mass *= scale;
            write_softmax(x, columns, log_sums[row], mass, to);
            to[background] -= scale * of_background[row];
            for (int64_t k = begin; k < pair; ++k) to[labels[k]] -= scale * weights[k];
        }
    }
    return 0;
}

// Distribution Focal Loss of logits (rows, bins) towards target (rows), and the logarithm of the sum of exponentials.
extern "C" int uotod_distribution_rows(const float *logits, const float *target, int64_t rows, int64_t bins,
                                       float *losses, LogSum *log_sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float *x = logits + row * bins;
        const Bins at(target[row], bins);
        const LogSum log_sum = log_sums[row] = log_sum_exp(x, bins);
        const auto of = [=](int64_t bin) { return (log_sum.largest - x[bin]) + log_sum.rest; };
        losses[row] = (1 - at.share) * of(at.left) + at.share * of(at.right);
    }
    return 0;
}

// Its gradient, scaled by grad[i * stride] in row i.
extern "C" int uotod_distribution_rows_gradient(const float *logits, const float *target, int64_t rows, int64_t bins,
                                                const LogSum *log_sums, const float *grad, int64_t stride,
                                                float *gradient, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const Bins at(target[row], bins);
        const float scale = grad[row * stride];
        float *to = gradient + row * bins;
        write_softmax(logits + row * bins, bins, log_sums[row], scale, to);
        to[at.left] -= scale * (1 - at.share);
        to[at.right] -= scale * at.share;
    }
    return 0;
}
