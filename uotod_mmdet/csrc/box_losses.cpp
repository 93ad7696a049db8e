// Box losses of weighted pairs of predictions and ground truths; see uotod_mmdet/ops/box_losses.py. Pairs come in the
// order of their rows.

#include "rows.h"
#include "vector.h"

#define INLINE __attribute__((always_inline)) inline  // which keeps vectors in registers

namespace {

struct Boxes {
    const float *preds, *truths, *sizes;
    const int64_t *pair_rows, *pair_truths, *pair_images;
    const float *weights;
    float scale, eps;  // eps < 0: L1
};

// 1 where x < y, 1/2 where they are equal, as autograd shares the slope of a minimum.
INLINE f8 is_less(f8 x, f8 y) { return x < y ? all(1.0f) : (x == y ? all(0.5f) : all(0.0f)); }

// Eight pairs, coordinate by coordinate; the last pair fills the rest. Boxes of sizes are (cx, cy, w, h) in their
// units.
struct Eight {
    f8 pred[4], truth[4], size[4];

    INLINE Eight(const Boxes &boxes, int64_t first, int64_t last) {
        f8 both[8];
        int64_t pairs[8], image[8] = {}, others = 0;
        for (int64_t k = 0; k < 8; ++k) {
            pairs[k] = std::min(first + k, last - 1);
            const float *x = boxes.preds + boxes.pair_rows[pairs[k]] * 4;
            const float *y = boxes.truths + boxes.pair_truths[pairs[k]] * 4;
            both[k] = f8{x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]};
            if (boxes.sizes) image[k] = boxes.pair_images[pairs[k]], others |= image[k] ^ image[0];
        }
        transpose8(both);
        std::copy(both, both + 4, pred), std::copy(both + 4, both + 8, truth);
        for (int axis = 0; axis < 4; ++axis)
            if (!others)
                size[axis] = all(boxes.sizes ? boxes.sizes[image[0] * 4 + axis] : 1.0f);
            else
                for (int64_t k = 0; k < 8; ++k) size[axis][k] = boxes.sizes[image[k] * 4 + axis];
    }
};

// |x - y| of all coordinates, and slopes of the predictions
INLINE f8 l1(const Eight &boxes, bool centred, f8 (&slope)[4]) {
    f8 truth[4], sum = {};
    for (int axis = 0; axis < 2; ++axis) {
        const f8 low = boxes.truth[axis], high = boxes.truth[axis + 2], size = boxes.size[axis];
        truth[axis] = centred ? (low + high) / 2.0f / size : low;
        truth[axis + 2] = centred ? (high - low) / size : high;
    }
    for (int axis = 0; axis < 4; ++axis) {
        const f8 by = boxes.pred[axis] - truth[axis], zero = {};
        sum += abs8(by);
        slope[axis] = by > 0.0f ? all(1.0f) : (by < 0.0f ? all(-1.0f) : zero);
    }
    return sum;
}

// 1 - GIoU, of areas of at least eps, and slopes of the predictions
INLINE f8 giou(const Eight &boxes, bool centred, float eps, f8 (&slope)[4]) {
    f8 low[2], high[2], gt_low[2], gt_high[2], side[2], gt_side[2], inner[2], shared[2], hull_side[2];
    const f8 zero = {};
    for (int axis = 0; axis < 2; ++axis) {
        const f8 first = boxes.pred[axis], second = boxes.pred[axis + 2], size = boxes.size[axis];
        low[axis] = centred ? (first - 0.5f * second) * size : first;
        high[axis] = centred ? (first + 0.5f * second) * size : second;
        gt_low[axis] = boxes.truth[axis], gt_high[axis] = boxes.truth[axis + 2];
        side[axis] = high[axis] - low[axis], gt_side[axis] = gt_high[axis] - gt_low[axis];
        inner[axis] = min8(high[axis], gt_high[axis]) - max8(low[axis], gt_low[axis]);  // negative: they lie apart
        shared[axis] = inner[axis] < zero ? zero : inner[axis];
        const f8 span = side[axis] + gt_side[axis] - inner[axis];
        hull_side[axis] = span < zero ? zero : span;
    }
    const f8 overlap = shared[0] * shared[1], raw_hull = hull_side[0] * hull_side[1], hull = max8(all(eps), raw_hull);
    const f8 raw_union = side[0] * side[1] + gt_side[0] * gt_side[1] - overlap, both = max8(all(eps), raw_union);
    const f8 by_union = raw_union > eps ? overlap / (both * both) - 1.0f / hull : zero;
    const f8 by_overlap = -1.0f / both - by_union, by_hull = raw_hull > eps ? both / (hull * hull) : zero;
    for (int axis = 0; axis < 2; ++axis) {
        const f8 area = by_union * side[1 - axis], of_hull = by_hull * hull_side[1 - axis];
        const f8 of_overlap = inner[axis] >= zero ? by_overlap * shared[1 - axis] : zero;
        const f8 at_high = is_less(high[axis], gt_high[axis]), at_low = is_less(gt_low[axis], low[axis]);
        const f8 by_high = area + of_overlap * at_high + of_hull * (1.0f - at_high);
        const f8 by_low = -area - of_overlap * at_low - of_hull * (1.0f - at_low), size = boxes.size[axis];
        slope[axis] = centred ? (by_low + by_high) * size : by_low;
        slope[axis + 2] = centred ? 0.5f * (by_high - by_low) * size : by_high;
    }
    return 2.0f - overlap / both - both / hull;
}

INLINE f8 box_loss(const Boxes &boxes, int64_t first, int64_t last, f8 (&slope)[4]) {
    const Eight eight(boxes, first, last);
    return boxes.eps < 0 ? l1(eight, boxes.sizes, slope) : giou(eight, boxes.sizes, boxes.eps, slope);
}

void write_losses(Boxes boxes, int64_t first, int64_t last, float *losses) {
    for (; first < last; first += 8) {
        f8 slope[4];
        const f8 loss = box_loss(boxes, first, last, slope);
        for (int64_t k = 0; k < std::min<int64_t>(8, last - first); ++k)
            losses[first + k] = boxes.scale * boxes.weights[first + k] * loss[k];
    }
}

void add_gradient(Boxes boxes, int64_t first, int64_t last, const float *grad, int64_t stride, float *gradient) {
    for (; first < last; first += 8) {
        f8 slope[8] = {};
        f4 slopes[8][2];
        box_loss(boxes, first, last, (f8(&)[4])slope);
        transpose8(slope);
        std::memcpy(slopes, slope, sizeof slopes);
        for (int64_t k = first; k < std::min(first + 8, last); ++k) {
            const float by = boxes.scale * boxes.weights[k] * grad[k * stride];
            float *to = gradient + boxes.pair_rows[k] * 4;
            f4 sum;
            std::memcpy(&sum, to, sizeof sum);
            sum += by * slopes[k - first][0];
            std::memcpy(to, &sum, sizeof sum);
        }
    }
}

}  // namespace

// Of predictions (rows, 4) and ground truths, both as (x1, y1, x2, y2): `scale` times the weight of each pair times
// 1 - GIoU, or the distance of the coordinates where eps is negative. Where `sizes` (images, 4) are given, predictions
// are (cx, cy, w, h) in units of them. If `gradient` is not null, it gets the gradient of the predictions, (rows, 4),
// of the sum of losses times grad[k * stride], instead. Returns -2 if an index of a pair is out of range.
extern "C" int uotod_box_losses(const float *preds, int64_t rows, const float *truths, int64_t gts, const float *sizes,
                                int64_t images, const int64_t *pair_rows, const int64_t *pair_truths,
                                const int64_t *pair_images, const float *weights, int64_t pairs, double scale,
                                double eps, float *losses, const float *grad, int64_t stride, float *gradient,
                                int threads) {
    if (!inside(pair_rows, pairs, rows, threads, true) || !inside(pair_truths, pairs, gts, threads) ||
        (sizes && !inside(pair_images, pairs, images, threads)))
        return -2;
    const Boxes boxes = {preds, truths, sizes, pair_rows, pair_truths, pair_images, weights, (float)scale, (float)eps};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t row = rows * part / threads, last_row = rows * (part + 1) / threads;
        const int64_t first = first_pair(pair_rows, pairs, row), last = first_pair(pair_rows, pairs, last_row);
        if (gradient) {
            std::fill(gradient + row * 4, gradient + last_row * 4, 0.0f);
            add_gradient(boxes, first, last, grad, stride, gradient);
        } else {
            write_losses(boxes, first, last, losses);
        }
    }
    return 0;
}
