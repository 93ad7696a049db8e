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

namespace {

// What an entry of no ground truth costs, p^gamma softplus(x) with p = sigmoid(x), and its slope.
struct Background {
    float gamma;

    inline f8 operator()(f8 x, f8 &slope) const {
        const f8 t = exp8(-abs8(x)), u = 1.0f + t;
        const f8 log1p = log8(u) + (t - (u - 1.0f)) / u;  // Kahan: to the last digit where t is small, too
        const f8 zero = {}, one = all(1.0f);
        const f8 loss = (x < zero ? zero : x) + log1p, prob = (x < zero ? t : one) / u;
        const f8 rest = (x < zero ? one : t) / u;
        const f8 factor = gamma == 2 ? prob * prob : exp8(gamma * ((x > zero ? zero : x) - log1p));
        slope = factor * (prob + gamma * loss * rest);
        return factor * loss;
    }
};

}  // namespace

// Sums over the rows of logits (rows, columns) of weight[i * stride] times the background's loss, but for the entries
// at `index` (ascending places in the flattened logits), whose loss and slope are given. The gradient is written
// unless it is null.
extern "C" int uotod_focal_losses(const float *logits, int64_t rows, int64_t columns, double gamma,
                                  const float *weights, int64_t stride, const int64_t *index,
                                  const float *entry_losses, const float *entry_slopes, int64_t entries,
                                  float *losses, float *gradient, int threads) try {
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
            if (begin < entry) {  // where nothing is lost: exp(-1e4) is 0
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
