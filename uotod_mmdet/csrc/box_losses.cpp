// Box losses of weighted pairs of predictions and ground truths; see uotod_mmdet/ops/box_losses.py. Pairs come in the
// order of their rows.

#include <cmath>

#include "rows.h"

namespace {

constexpr int BLOCK = 16;  // pairs that vector instructions take together

// 1 where x < y, 1/2 where they are equal, as autograd shares the slope of a minimum.
inline float is_less(float x, float y) { return x < y ? 1.0f : (x == y ? 0.5f : 0.0f); }

// An axis of two boxes.
struct Axis {
    float low, high, gt_low, gt_high, side, gt_side, inner, shared, hull;

    Axis(float low, float high, float gt_low, float gt_high)
        : low(low), high(high), gt_low(gt_low), gt_high(gt_high), side(high - low), gt_side(gt_high - gt_low) {
        inner = (high < gt_high ? high : gt_high) - (low > gt_low ? low : gt_low);  // negative where they lie apart
        shared = inner < 0 ? 0 : inner;
        hull = side + gt_side - inner < 0 ? 0 : side + gt_side - inner;
    }

    // Slopes of a loss whose slopes by the areas of the union, the overlap and the hull are given.
    void slopes(const Axis &other, float by_union, float by_overlap, float by_hull, float &by_low,
                float &by_high) const {
        const float area = by_union * other.side, of_hull = by_hull * other.hull;
        const float of_overlap = inner >= 0 ? by_overlap * other.shared : 0;
        const float at_high = is_less(high, gt_high), at_low = is_less(gt_low, low);
        by_high = area + of_overlap * at_high + of_hull * (1 - at_high);
        by_low = -area - of_overlap * at_low - of_hull * (1 - at_low);
    }
};

// Coordinates of a block of pairs in the form that the loss compares, the sizes of their images, their losses, and the
// slopes of the predictions.
struct Block {
    float pred[4][BLOCK], truth[4][BLOCK], size[4][BLOCK], loss[BLOCK], slope[4][BLOCK];

    void l1(int k) {
        loss[k] = 0;
        for (int axis = 0; axis < 4; ++axis) {
            const float by = pred[axis][k] - truth[axis][k];
            loss[k] += std::fabs(by), slope[axis][k] = by > 0 ? 1.0f : (by < 0 ? -1.0f : 0.0f);
        }
    }

    // 1 - GIoU, of areas of at least eps
    void giou(int k, float eps) {
        const Axis x(pred[0][k], pred[2][k], truth[0][k], truth[2][k]);
        const Axis y(pred[1][k], pred[3][k], truth[1][k], truth[3][k]);
        const float overlap = x.shared * y.shared, raw_hull = x.hull * y.hull, hull = raw_hull < eps ? eps : raw_hull;
        const float raw_union = x.side * y.side + x.gt_side * y.gt_side - overlap;
        const float both = raw_union < eps ? eps : raw_union;
        const float by_union = raw_union > eps ? overlap / (both * both) - 1 / hull : 0;
        const float by_overlap = -1 / both - by_union, by_hull = raw_hull > eps ? both / (hull * hull) : 0;
        x.slopes(y, by_union, by_overlap, by_hull, slope[0][k], slope[2][k]);
        y.slopes(x, by_union, by_overlap, by_hull, slope[1][k], slope[3][k]);
        loss[k] = 2 - overlap / both - both / hull;
    }
};

}  // namespace

// Of predictions (rows, 4), as (x1, y1, x2, y2), or `centred` as (cx, cy, w, h), in units of their image's `sizes`
// (images, 4) where these are given, and ground truths (x1, y1, x2, y2), in pixels where sizes are: `scale` times the
// weight of each pair times 1 - GIoU, or the distance of the coordinates where eps is negative. If `gradient` is not
// null, it gets the gradient of the predictions, (rows, 4), of the sum of losses times grad[k * stride], instead.
// Returns -2 if an index of a pair is out of range.
extern "C" int uotod_box_losses(const float *preds, int64_t rows, const float *truths, int64_t gts, const float *sizes,
                                int64_t images, int64_t centred, const int64_t *pair_rows, const int64_t *pair_truths,
                                const int64_t *pair_images, const float *weights, int64_t pairs, double scale,
                                double eps, float *losses, const float *grad, int64_t stride, float *gradient,
                                int threads) {
    if (!inside(pair_rows, pairs, rows, true) || !inside(pair_truths, pairs, gts) ||
        (sizes && !inside(pair_images, pairs, images)))
        return -2;
    const bool is_l1 = eps < 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t row = rows * part / threads, last_row = rows * (part + 1) / threads;
        const int64_t last = first_pair(pair_rows, pairs, last_row);
        if (gradient) std::fill(gradient + row * 4, gradient + last_row * 4, 0.0f);
        for (int64_t first = first_pair(pair_rows, pairs, row); first < last; first += BLOCK) {
            const int count = (int)std::min((int64_t)BLOCK, last - first);
            Block block;
            for (int k = 0; k < BLOCK; ++k) {  // the last pair fills the rest of the last block
                const int64_t pair = std::min(first + k, last - 1);
                const float *pred = preds + pair_rows[pair] * 4, *truth = truths + pair_truths[pair] * 4;
                for (int axis = 0; axis < 4; ++axis) {
                    const float size = sizes ? sizes[pair_images[pair] * 4 + axis] : 1.0f;
                    const float half = axis < 2 ? -0.5f : 0.5f, low = truth[axis % 2], high = truth[axis % 2 + 2];
                    block.size[axis][k] = size;
                    if (is_l1) {
                        const float value = !centred ? truth[axis] : (axis < 2 ? (low + high) / 2 : high - low);
                        block.pred[axis][k] = pred[axis], block.truth[axis][k] = value / size;
                    } else {
                        const float value = centred ? pred[axis % 2] + half * pred[axis % 2 + 2] : pred[axis];
                        block.pred[axis][k] = value * size, block.truth[axis][k] = truth[axis];
                    }
                }
            }
            if (is_l1) {
#pragma omp simd
                for (int k = 0; k < BLOCK; ++k) block.l1(k);
            } else {
#pragma omp simd
                for (int k = 0; k < BLOCK; ++k) block.giou(k, (float)eps);
            }
            for (int k = 0; k < count; ++k) {
                const float weight = (float)scale * weights[first + k];
                if (!gradient) {
                    losses[first + k] = weight * block.loss[k];
                    continue;
                }
                const float by = weight * grad[(first + k) * stride];
                float *to = gradient + pair_rows[first + k] * 4, slope[4];
                for (int axis = 0; axis < 4; ++axis)
                    slope[axis] = by * block.slope[axis][k] * (is_l1 ? 1.0f : block.size[axis][k]);
                for (int axis = 0; axis < 2; ++axis) {
                    const bool halves = centred && !is_l1;
                    to[axis] += halves ? slope[axis] + slope[axis + 2] : slope[axis];
                    to[axis + 2] += halves ? 0.5f * (slope[axis + 2] - slope[axis]) : slope[axis + 2];
                }
            }
        }
    }
    return 0;
}
