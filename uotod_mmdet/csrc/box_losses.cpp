// Box losses of weighted pairs of predictions and ground truths; see uotod_mmdet/ops/box_losses.py. Pairs come in the
// order of their rows.

#include "rows.h"

// How boxes are given: predictions (rows, 4) as (x1, y1, x2, y2), or `centred` as (cx, cy, w, h); in units of their
// image's `sizes` (images, 4) where these are given. Ground truths are (x1, y1, x2, y2), in pixels where sizes are.
struct Boxes {
    const float *preds, *truths, *sizes;
    int64_t rows, centred;
    const int64_t *pair_rows, *pair_truths, *pair_images;
    const float *weights;  // of the pairs
    int64_t pairs;
    float scale;  // of all losses

    bool fit(int64_t gts, int64_t images) const {
        return inside(pair_rows, pairs, rows, true) && inside(pair_truths, pairs, gts) &&
               (!sizes || inside(pair_images, pairs, images));
    }
};

namespace {

// Eight pairs, coordinate by coordinate; places after the last pair repeat that pair.
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
        for (int axis = 0; axis < 4; ++axis)
            for (int64_t k = 0; k < 8; ++k)
                size[axis][k] = boxes.sizes ? boxes.sizes[boxes.pair_images[pairs[k]] * 4 + axis] : 1.0f;
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
// negative. Returns -2 if an index of a pair is out of range.
extern "C" int uotod_box_losses(const float *preds, int64_t rows, const float *truths, int64_t gts, const float *sizes,
                                int64_t images, int64_t centred, const int64_t *pair_rows, const int64_t *pair_truths,
                                const int64_t *pair_images, const float *weights, int64_t pairs, double scale,
                                double eps, float *losses, int threads) {
    const Boxes boxes{preds,       truths,      sizes,   rows,  centred,     pair_rows,
                      pair_truths, pair_images, weights, pairs, (float)scale};
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
extern "C" int uotod_box_losses_gradient(const float *preds, int64_t rows, const float *truths, int64_t gts,
                                         const float *sizes, int64_t images, int64_t centred, const int64_t *pair_rows,
                                         const int64_t *pair_truths, const int64_t *pair_images, const float *weights,
                                         int64_t pairs, double scale, double eps, const float *grad, int64_t stride,
                                         float *gradient, int threads) {
    const Boxes boxes{preds,       truths,      sizes,   rows,  centred,     pair_rows,
                      pair_truths, pair_images, weights, pairs, (float)scale};
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
