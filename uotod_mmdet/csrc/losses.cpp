// Losses of weighted pairs of predictions and ground truths in float32 on a processor: uotod_mmdet/losses in fewer
// passes. Pairs come in the order of their rows.

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "memory.h"
#include "vector.h"

namespace {

// The first of the pairs of a row.
int64_t first_pair(const int64_t *rows, int64_t pairs, int64_t row) {
    return std::lower_bound(rows, rows + pairs, row) - rows;
}

// Whether all indices lie in [0, end), and are in ascending order where that is asked for.
bool inside(const int64_t *indices, int64_t count, int64_t end, bool ascending = false) {
    int64_t bad = 0;  // negative indices are large as unsigned ones
    for (int64_t k = 0; k < count; ++k) bad |= (uint64_t)indices[k] >= (uint64_t)end;
    for (int64_t k = 1; ascending && k < count; ++k) bad |= indices[k] < indices[k - 1];
    return !bad;
}

// The end of a row behind its last whole vector, filled up with `filler`.
inline f8 load_rest(const float *x, int64_t columns, float filler) {
    const int64_t count = columns % 8;
    if (columns >= 8) {
        return lanes8() >= 8 - (int32_t)count ? load(x + columns - 8) : all(filler);
    }
    f8 rest = all(filler);
    for (int64_t lane = 0; lane < count; ++lane) rest[lane] = x[lane];
    return rest;
}

// The logarithm of a sum of exponentials in two parts, as one float would lose the second beside a large first.
struct LogSum {
    float largest, rest;
};

// NaN or inf where an entry is.
inline LogSum log_sum_exp(const float *x, int64_t columns) {
    const int64_t whole = columns / 8 * 8;
    const f8 rest = load_rest(x, columns, -std::numeric_limits<float>::infinity());
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
extern "C" int uotod_softmax_losses(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                    const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                    const float *weights, int64_t pairs, float *losses, LogSum *log_sums,
                                    int threads) {
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

// Its gradient, scaled by grad[i * stride] in row i.
extern "C" int uotod_softmax_gradient(const float *scores, int64_t rows, int64_t columns, int64_t background,
                                      const float *of_background, const int64_t *pair_rows, const int64_t *labels,
                                      const float *weights, int64_t pairs, const LogSum *log_sums, const float *grad,
                                      int64_t stride, float *gradient, int threads) {
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

// Pairs of a plan (images, preds, columns), whose last column is the background, that weigh at least `least`, and more than 0. Unless `fill` is set they are
// counted only: the number in each of `threads` parts goes to `counts`, from which the second call starts.
extern "C" int uotod_expand(const float *plan, int64_t images, int64_t preds, int64_t columns, double least_,
                            int64_t *counts, int64_t fill, int64_t *rows, int64_t *truths, int64_t *of_images, float *weights,
                            float *background, int threads) {
    const float least = std::max((float)least_, std::numeric_limits<float>::denorm_min());
    const int64_t gts = columns - 1;
    const int64_t total = images * preds;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t first = total * part / threads, last = total * (part + 1) / threads;
        int64_t count = 0;
        if (!fill) {  // all entries, less those of the background
            for (int64_t k = first * (gts + 1); k < last * (gts + 1); ++k) count += plan[k] >= least;
            for (int64_t row = first; row < last; ++row) count -= plan[row * (gts + 1) + gts] >= least;
            counts[part] = count;
            continue;
        }
        for (int before = 0; before < part; ++before) count += counts[before];
        for (int64_t row = first; row < last; ++row) {
            const float *from = plan + row * (gts + 1);
            const int64_t image = row / preds;
            const auto take = [&](int64_t j) {
                rows[count] = row, truths[count] = image * gts + j, of_images[count] = image;
                weights[count++] = from[j];
            };
            for (int64_t j = 0; gts < 8 && j < gts; ++j)
                if (from[j] >= least) take(j);
            for (int64_t j = 0; gts >= 8 && j < gts; j += 8) {
                const int64_t begin = std::min(j, gts - 8);  // the last vector may hold what the one before it holds
                unsigned bits = bits8(load(from + begin) >= least) >> (j - begin);
                for (; bits; bits &= bits - 1) take(j + __builtin_ctz(bits));
            }
            background[row] = from[gts];
        }
    }
    return 0;
}

// Distribution Focal Loss of logits (rows, bins) towards target (rows), and the logarithm of the sum of exponentials.
extern "C" int uotod_distribution_losses(const float *logits, const float *target, int64_t rows, int64_t bins,
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
extern "C" int uotod_distribution_gradient(const float *logits, const float *target, int64_t rows, int64_t bins,
                                           const LogSum *log_sums, const float *grad, int64_t stride, float *gradient,
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
extern "C" int uotod_focal_losses(const float *logits, int64_t rows, int64_t columns, double gamma,
                                  const float *weights, int64_t stride, const int64_t *index,
                                  const float *entry_losses, const float *entry_slopes, int64_t entries,
                                  float *losses, float *gradient, int threads) try {
    if (!inside(index, entries, rows * columns, true)) return -2;
    const Background background{(float)gamma};
    const int64_t whole = columns / 8 * 8;
    std::vector<float> buffers(threads * (columns + 8));
    expect_writes(gradient, rows * columns * (int64_t)sizeof(float));
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

// How boxes are given: predictions (rows, 4) as (x1, y1, x2, y2), or `centred` as (cx, cy, w, h); in units of their
// image's `sizes` (images, 4) where these are given. Ground truths are (x1, y1, x2, y2), in pixels where sizes are.
struct Boxes {
    const float *preds, *truths, *sizes;
    int64_t rows, centred;
    const int64_t *pair_rows, *pair_truths, *pair_images;
    const float *weights;  // of the pairs
    int64_t pairs;
    float scale;  // of all

    bool fit(int64_t gts, int64_t images) const {
        return inside(pair_rows, pairs, rows, true) && inside(pair_truths, pairs, gts) &&
               (!sizes || inside(pair_images, pairs, images));
    }
};

namespace {

// Eight pairs, coordinate by coordinate; those behind the last pair repeat it.
struct Eight {
    f8 pred[4], truth[4], size[4];

    Eight(const Boxes &boxes, int64_t first) {
        f8 both[8];
        int64_t pairs[8];
        for (int64_t k = 0; k < 8; ++k) {
            pairs[k] = std::min(first + k, boxes.pairs - 1);
            const float *x = boxes.preds + boxes.pair_rows[pairs[k]] * 4;
            const float *y = boxes.truths + boxes.pair_truths[pairs[k]] * 4;
            both[k] = f8{x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]};
        }
        transpose8(both);
        std::copy(both, both + 4, pred), std::copy(both + 4, both + 8, truth);
        const int64_t *images = boxes.pair_images;
        const bool one_image = !boxes.sizes || images[pairs[0]] == images[pairs[7]];
        for (int axis = 0; axis < 4; ++axis)
            if (one_image)
                size[axis] = all(boxes.sizes ? boxes.sizes[images[pairs[0]] * 4 + axis] : 1.0f);
            else
                for (int64_t k = 0; k < 8; ++k) size[axis][k] = boxes.sizes[images[pairs[k]] * 4 + axis];
    }
};

// Distance of eight pairs; slope of the predictions.
inline f8 l1(const Eight &boxes, bool centred, f8 (&slope)[4]) {
    f8 truth[4], sum = {};
    for (int axis = 0; axis < 4; ++axis) truth[axis] = boxes.truth[axis] / boxes.size[axis];
    if (centred)
        for (int axis = 0; axis < 2; ++axis) {
            const f8 low = truth[axis], high = truth[axis + 2];
            truth[axis] = (low + high) / 2.0f, truth[axis + 2] = high - low;
        }
    for (int axis = 0; axis < 4; ++axis) {
        const f8 by = boxes.pred[axis] - truth[axis], zero = {};
        sum += abs8(by);
        slope[axis] = by > 0.0f ? all(1.0f) : (by < 0.0f ? all(-1.0f) : zero);
    }
    return sum;
}

// 1 where x < y, 1/2 where they are equal, as autograd shares the slope of a minimum.
inline f8 is_less(f8 x, f8 y) { return x < y ? all(1.0f) : (x == y ? all(0.5f) : all(0.0f)); }

// 1 - GIoU of eight pairs; slope of the predictions.
inline f8 giou(const Eight &boxes, bool centred, float eps, f8 (&slope)[4]) {
    f8 low[2], high[2], gt_low[2], gt_high[2], side[2], gt_side[2], raw[2], shared[2], hull_side[2];
    const f8 zero = {};
    for (int axis = 0; axis < 2; ++axis) {
        const f8 first = boxes.pred[axis], second = boxes.pred[axis + 2], size = boxes.size[axis];
        low[axis] = (centred ? first - 0.5f * second : first) * size;
        high[axis] = (centred ? first + 0.5f * second : second) * size;
        gt_low[axis] = boxes.truth[axis], gt_high[axis] = boxes.truth[axis + 2];
        side[axis] = high[axis] - low[axis], gt_side[axis] = gt_high[axis] - gt_low[axis];
        raw[axis] = min8(high[axis], gt_high[axis]) - max8(low[axis], gt_low[axis]);
        shared[axis] = raw[axis] < zero ? zero : raw[axis];
        const f8 span = side[axis] + gt_side[axis] - raw[axis];
        hull_side[axis] = span < zero ? zero : span;
    }
    const f8 overlap = shared[0] * shared[1], raw_hull = hull_side[0] * hull_side[1];
    const f8 hull = raw_hull < eps ? all(eps) : raw_hull;
    const f8 raw_union = side[0] * side[1] + gt_side[0] * gt_side[1] - overlap;
    const f8 both = raw_union < eps ? all(eps) : raw_union;
    const f8 by_union = raw_union > eps ? overlap / (both * both) - 1.0f / hull : zero;
    const f8 by_overlap = -1.0f / both - by_union;
    const f8 by_hull = raw_hull > eps ? both / (hull * hull) : zero;
    for (int axis = 0; axis < 2; ++axis) {
        const f8 area = by_union * side[1 - axis], of_hull = by_hull * hull_side[1 - axis];
        const f8 of_overlap = raw[axis] >= zero ? by_overlap * shared[1 - axis] : zero;
        const f8 at_high = is_less(high[axis], gt_high[axis]), at_low = is_less(gt_low[axis], low[axis]);
        const f8 size = boxes.size[axis];
        const f8 by_high = (area + of_overlap * at_high + of_hull * (1.0f - at_high)) * size;
        const f8 by_low = (-area - of_overlap * at_low - of_hull * (1.0f - at_low)) * size;
        slope[axis] = centred ? by_low + by_high : by_low;
        slope[axis + 2] = centred ? 0.5f * (by_high - by_low) : by_high;
    }
    return 2.0f - overlap / both - both / hull;
}

inline f8 box_loss(const Eight &boxes, bool centred, double eps, f8 (&slope)[4]) {
    return eps < 0 ? l1(boxes, centred, slope) : giou(boxes, centred, (float)eps, slope);
}

}  // namespace

// Weighted 1 - GIoU of each pair, divided by areas of at least eps; the distance of the coordinates where eps is
// negative. Returns -2 where an index of a pair lies outside.
extern "C" int uotod_box_losses(const float *preds, int64_t rows, const float *truths, int64_t gts, const float *sizes,
                                int64_t images, int64_t centred, const int64_t *pair_rows, const int64_t *pair_truths,
                                const int64_t *pair_images, const float *weights, int64_t pairs, double scale,
                                double eps, float *losses, int threads) {
    const Boxes boxes{preds, truths, sizes, rows, centred, pair_rows, pair_truths, pair_images, weights, pairs, (float)scale};
    if (!boxes.fit(gts, images)) return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < pairs; first += 8) {
        f8 slope[4];
        const f8 values = box_loss(Eight(boxes, first), centred, eps, slope);
        const int64_t count = std::min((int64_t)8, pairs - first);
        for (int64_t k = 0; k < count; ++k) losses[first + k] = boxes.scale * weights[first + k] * values[k];
    }
    return 0;
}

// The gradient of the predictions, (rows, 4), of the sum of losses times grad[k * stride].
extern "C" int uotod_box_gradient(const float *preds, int64_t rows, const float *truths, int64_t gts,
                                  const float *sizes, int64_t images, int64_t centred, const int64_t *pair_rows,
                                  const int64_t *pair_truths, const int64_t *pair_images, const float *weights,
                                  int64_t pairs, double scale, double eps, const float *grad, int64_t stride,
                                  float *gradient, int threads) {
    const Boxes boxes{preds, truths, sizes, rows, centred, pair_rows, pair_truths, pair_images, weights, pairs, (float)scale};
    if (!boxes.fit(gts, images)) return -2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t row = rows * part / threads, last_row = rows * (part + 1) / threads;
        std::fill(gradient + row * 4, gradient + last_row * 4, 0.0f);
        const int64_t last = first_pair(pair_rows, pairs, last_row);
        for (int64_t first = first_pair(pair_rows, pairs, row); first < last; first += 8) {
            const int64_t count = std::min((int64_t)8, last - first);
            f8 slope[8] = {};
            f4 slopes[8][2];
            box_loss(Eight(boxes, first), centred, eps, (f8(&)[4])slope);
            transpose8(slope);
            std::memcpy(slopes, slope, sizeof slopes);
            for (int64_t k = 0; k < count; ++k) {
                const float by = boxes.scale * weights[first + k] * grad[(first + k) * stride];
                float *to = gradient + pair_rows[first + k] * 4;
                f4 sum;
                std::memcpy(&sum, to, sizeof sum);
                sum += by * slopes[k][0];
                std::memcpy(to, &sum, sizeof sum);
            }
        }
    }
    return 0;
}

// Of a plan's pairs: the matched mass, how many ground truths that are real hold less than 1/2, the entropies of the
// rows that give more to ground truths than to the background, and the number of these rows.
extern "C" int uotod_plan_statistics(const int64_t *pair_rows, const int64_t *pair_truths, const float *weights,
                                     int64_t pairs, const float *background, int64_t rows, const uint8_t *gt_mask,
                                     int64_t gts, double *statistics, int threads) try {
    if (!inside(pair_rows, pairs, rows, true) || !inside(pair_truths, pairs, gts)) return -2;
    std::vector<float> masses((gts + 8) * threads, 0.0f), mass_of_row(rows, 0.0f);  // of the ground truths by thread
    double entropy = 0, mass = 0;
    int64_t matched = 0, unmatched = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : entropy, matched) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t first = rows * part / threads, last = rows * (part + 1) / threads;
        const int64_t end = first_pair(pair_rows, pairs, last);
        float *mass_of_gt = masses.data() + (gts + 8) * part;
        for (int64_t k = first_pair(pair_rows, pairs, first); k < end; ++k) {
            mass_of_row[pair_rows[k]] += weights[k];
            mass_of_gt[pair_truths[k]] += weights[k];
        }
        const auto of = [](float probability) {
            return probability > 0 ? -(double)probability * std::log(probability) : 0.0;
        };
        for (int64_t row = first; row < last; ++row) {
            if (!(mass_of_row[row] > background[row])) continue;
            ++matched;
            const float whole = mass_of_row[row] + background[row];
            entropy += of(background[row] / whole);
            for (int64_t k = first_pair(pair_rows, pairs, row); k < end && pair_rows[k] == row; ++k)
                entropy += of(weights[k] / whole);
        }
    }
    for (int64_t j = 0; j < gts; ++j) {
        float of_gt = 0;
        for (int part = 0; part < threads; ++part) of_gt += masses[(gts + 8) * part + j];
        mass += of_gt, unmatched += gt_mask[j] && of_gt < 0.5f;
    }
    statistics[0] = mass, statistics[1] = (double)unmatched, statistics[2] = entropy, statistics[3] = (double)matched;
    return 0;
} catch (const std::bad_alloc &) {
    return -1;
}

// Sums of values (count) over each of `groups`, to which they belong in ascending order.
extern "C" int uotod_sum_groups(const float *values, const int64_t *group, int64_t count, float *sums, int64_t groups,
                                int) {
    if (!inside(group, count, groups, true)) return -2;
    int64_t k = 0;
    for (int64_t index = 0; index < groups; ++index) {
        const int64_t end = std::upper_bound(group + k, group + count, index) - group;
        f8 sum = {};
        for (; k + 8 <= end; k += 8) sum += load(values + k);
        float rest = 0;
        for (; k < end; ++k) rest += values[k];
        sums[index] = sum8(sum) + rest;
    }
    return 0;
}
