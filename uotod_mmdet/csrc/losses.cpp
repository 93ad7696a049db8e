// Losses of weighted pairs of predictions and ground truths in float32 on a processor: uotod_mmdet/losses in fewer
// passes. Pairs come in the order of their rows.

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "vector.h"

namespace {

// The first of the pairs of a row.
int64_t first_pair(const int64_t *rows, int64_t pairs, int64_t row) {
    return std::lower_bound(rows, rows + pairs, row) - rows;
}

// The end of a row behind its last whole vector, filled up with `filler`.
inline f8 load_rest(const float *x, int64_t columns, float filler) {
    const int64_t count = columns % 8;
    if (columns >= 8) {
        const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
        return lane >= 8 - (int32_t)count ? load(x + columns - 8) : all(filler);
    }
    f8 rest = all(filler);
    for (int64_t lane = 0; lane < count; ++lane) rest[lane] = x[lane];
    return rest;
}

// NaN or inf where an entry is.
inline float log_sum_exp(const float *x, int64_t columns) {
    const int64_t whole = columns / 8 * 8;
    const f8 rest = load_rest(x, columns, -1e30f);
    f8 most = rest, total = {};
    for (int64_t c = 0; c < whole; c += 8) most = max8(load(x + c), most);
    const float largest = largest8(most);
    for (int64_t c = 0; c < whole; c += 8) total += exp8(load(x + c) - largest);
    if (whole < columns) total += exp8(rest - largest);
    return largest + std::log(sum8(total));
}

// to = scale * exp(x - log_sum)
inline void write_softmax(const float *x, int64_t columns, float log_sum, float scale, float *to) {
    const int64_t whole = columns / 8 * 8;
    for (int64_t c = 0; c < whole; c += 8) store(to + c, scale * exp8(load(x + c) - log_sum));
    if (whole == columns) return;
    if (columns >= 8) {
        store(to + columns - 8, scale * exp8(load(x + columns - 8) - log_sum));
        return;
    }
    const f8 rest = scale * exp8(load_rest(x, columns, 0.0f) - log_sum);
    for (int64_t c = 0; c < columns; ++c) to[c] = rest[c];
}

// The two bins beside a target, and the weight of the right one.
struct Bins {
    int64_t left, right;
    float share;
    Bins(float target, int64_t bins) {
        left = std::max((int64_t)0, std::min((int64_t)target, bins - 1));  // outside is an error that others find
        right = std::min(left + 1, bins - 1);
        share = target - (float)left;
    }
};

}  // namespace

// Softmax cross-entropy. Row i of scores (rows, columns) has label `background` with weight of_background[i], and the
// labels of its pairs with theirs. Writes its loss and the logarithm of the sum of its exponentials.
extern "C" int uotod_softmax_losses(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                    const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                    const float *weights, int64_t pairs, float *losses, float *log_sums,
                                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t last = rows * (part + 1) / threads;
        int64_t row = rows * part / threads, pair = first_pair(pair_rows, pairs, row);
        for (; row < last; ++row) {
            const float *x = scores + row * columns, log_sum = log_sum_exp(x, columns);
            log_sums[row] = log_sum;
            // A weight of 0 leaves a logit of -inf out.
            float loss = of_background[row] != 0 ? of_background[row] * (log_sum - x[background]) : 0.0f;
            for (; pair < pairs && pair_rows[pair] == row; ++pair)
                if (weights[pair] != 0) loss += weights[pair] * (log_sum - x[labels[pair]]);
            losses[row] = loss;
        }
    }
    return 0;
}

// Its gradient, scaled by grad[i * stride] in row i.
extern "C" int uotod_softmax_gradient(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                      const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                      const float *weights, int64_t pairs, const float *log_sums, const float *grad,
                                      int64_t stride, float *gradient, int threads) {
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

// Pairs of a plan (images, preds, gts + 1) that weigh at least `least`, and more than 0. With `rows` null they are
// counted only: the number in each of `threads` parts goes to `counts`, from which the second call starts.
extern "C" int uotod_expand(const float *plan, int64_t images, int64_t preds, int64_t gts, double least_,
                            int64_t *counts, int64_t *rows, int64_t *truths, int64_t *of_images, float *weights,
                            float *background, int threads) {
    const float least = (float)least_;
    const int64_t total = images * preds;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        int64_t count = 0;
        if (rows)
            for (int before = 0; before < part; ++before) count += counts[before];
        const int64_t last = total * (part + 1) / threads;
        for (int64_t row = total * part / threads; row < last; ++row) {
            const float *from = plan + row * (gts + 1);
            if (!rows) {
                for (int64_t j = 0; j < gts; ++j) count += from[j] >= least && from[j] > 0;
                continue;
            }
            const int64_t image = row / preds;
            for (int64_t j = 0; j < gts; ++j) {
                if (!(from[j] >= least && from[j] > 0)) continue;
                rows[count] = row, truths[count] = image * gts + j, of_images[count] = image;
                weights[count++] = from[j];
            }
            background[row] = from[gts];
        }
        if (!rows) counts[part] = count;
    }
    return 0;
}

// Distribution Focal Loss of logits (rows, bins) towards target (rows), and the logarithm of the sum of exponentials.
extern "C" int uotod_distribution_losses(const float *logits, const float *target, int64_t rows, int64_t bins,
                                         float *losses, float *log_sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float *x = logits + row * bins;
        const Bins at(target[row], bins);
        log_sums[row] = log_sum_exp(x, bins);
        losses[row] = (1 - at.share) * (log_sums[row] - x[at.left]) + at.share * (log_sums[row] - x[at.right]);
    }
    return 0;
}

// Its gradient, scaled by grad[i * stride] in row i.
extern "C" int uotod_distribution_gradient(const float *logits, const float *target, int64_t rows, int64_t bins,
                                           const float *log_sums, const float *grad, int64_t stride, float *gradient,
                                           int threads) {
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
