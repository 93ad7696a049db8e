// Match costs of all predictions with all ground truths in float32 on a CPU, all terms of a prediction at once; see
// uotod_mmdet/ops/pair_costs.py.

#include <cmath>
#include <new>
#include <vector>

#include "rows.h"
#include "vector.h"

enum Kind : int64_t { GIVEN, IOU, GIOU, LOG_IOU, L1, SOFTMAX, FOCAL };

// One match cost as the caller passes it: a row of six numbers.
struct Term {
    double kind, weight, eps, alpha, gamma, centred;  // centred: L1 compares (centre, width and height)
};

namespace {

long padded(long count) { return (count + 7) / 8 * 8; }

// Ground truths of an image, each coordinate in a row of its own, and room for what is found for a prediction, padded
// to whole vectors.
struct Scratch {
    long width;
    std::vector<float> boxes, real, sum, probs;
    std::vector<int32_t> labels;

    Scratch(long gts, long classes)
        : width(padded(gts)), boxes(4 * width), real(width), sum(width), probs(padded(classes)), labels(width) {}

    f8 coordinate(long axis, long j) const { return load(&boxes[axis * width + j]); }
};

// NaN stays NaN, unlike in max8.
f8 at_least(f8 x, float low) { return x < low ? all(low) : x; }

void add_overlaps(const Term &term, const float *box, const Scratch &gt, long count, float *sum) {
    const float weight = (float)term.weight, eps = (float)term.eps, least = 1e-6f;
    const f8 x1 = all(box[0]), y1 = all(box[1]), x2 = all(box[2]), y2 = all(box[3]);
    const f8 side_x = x2 - x1, side_y = y2 - y1, zero = {};
    for (long j = 0; j < count; j += 8) {
        const f8 a1 = gt.coordinate(0, j), b1 = gt.coordinate(1, j), a2 = gt.coordinate(2, j), b2 = gt.coordinate(3, j);
        const f8 gt_x = a2 - a1, gt_y = b2 - b1;
        // negative where the boxes do not overlap
        const f8 shared_x = min8(x2, a2) - max8(x1, a1), shared_y = min8(y2, b2) - max8(y1, b1);
        const f8 overlap = max8(shared_x, zero) * max8(shared_y, zero);
        const f8 both = at_least(side_x * side_y + gt_x * gt_y - overlap, least);
        f8 value = overlap / both;
        if (term.kind == GIOU) {
            const f8 hull = at_least(side_x + gt_x - shared_x, 0) * at_least(side_y + gt_y - shared_y, 0);
            value += both / at_least(hull, least) - 1.0f;
        } else if (term.kind == LOG_IOU) {
            value = log8(at_least(value, eps));
        }
        store(sum + j, load(sum + j) + weight * value);
    }
}

// Distances of corners, or of centres, widths and heights, in units of the image.
void add_l1(const Term &term, const float *box, const float *size, const Scratch &gt, long count, float *sum) {
    const f4 by = (float)term.weight / f4{size[0], size[1], size[2], size[3]};
    for (long j = 0; j < count; j += 8) {
        f8 value = {};
        for (long axis = 0; axis < 2; ++axis) {
            f8 first = box[axis] - gt.coordinate(axis, j), second = box[axis + 2] - gt.coordinate(axis + 2, j);
            if (term.centred) first = 0.5f * (first + second), second = 2.0f * (second - first);
            value += abs8(first) * by[axis] + abs8(second) * by[axis + 2];
        }
        store(sum + j, load(sum + j) + value);
    }
}

// The probability of the ground truth's class.
void add_softmax(const Term &term, const float *scores, long classes, Scratch &gt, long count, float *sum) {
    f8 total;  // NaN where a score is NaN or +inf
    const auto write = [&](float largest) {
        total = all(0.0f);
        each8(scores, classes, -INFINITY, [&](f8 x, int64_t place, int64_t) {
            const f8 value = exp8(x - largest);
            store(&gt.probs[place], value), total += value;
        });
    };
    write(0);
    if (!is_moderate(sum8(total))) write(*std::max_element(scores, scores + classes));
    const float scale = (float)term.weight / sum8(total);
    for (long j = 0; j < count; ++j) sum[j] += gt.probs[gt.labels[j]] * scale;
}

// mmdet's FocalLossCost.
void add_focal(const Term &term, const float *scores, const Scratch &gt, long count, float *sum) {
    const float alpha = (float)term.alpha, gamma = (float)term.gamma, eps = (float)term.eps;
    const auto power = [gamma](f8 x) { return gamma == 2 ? x * x : exp8(gamma * log8(max8(x, all(1e-37f)))); };
    for (long j = 0; j < count; j += 8) {
        f8 x;
        for (long lane = 0; lane < 8; ++lane) x[lane] = scores[gt.labels[j + lane]];
        const f8 prob = 1.0f / (1.0f + exp8(-x)), rest = 1.0f - prob;
        const f8 value = (1 - alpha) * power(prob) * log8(rest + eps) - alpha * power(rest) * log8(prob + eps);
        store(sum + j, load(sum + j) + (float)term.weight * (x == x ? value : x));
    }
}

}  // namespace

// Sum the terms to `cost` (images, preds, gts + 1); 0 where a mask (gt_mask (images, gts), pred_mask (images, preds)
// or null) is; `background` in the last column. Boxes (images, preds, 4), gt_boxes (images, gts, 4), scores (images,
// preds, classes), labels (images, gts), sizes (images, 4), what L1 divides coordinates by, and given (images, preds,
// gts), terms that others computed, may be null where no term needs them. Returns 1 if a sum is not finite, else 0; -1
// if memory ran out, -2 if a label is not a class, an input is missing, or `columns` is not gts + 1.
extern "C" int uotod_pair_costs(const Term *terms, int64_t count, const float *boxes, const float *gt_boxes,
                                const float *scores, int64_t classes, const int64_t *labels, const float *sizes,
                                const float *given, const uint8_t *gt_mask, const uint8_t *pred_mask, double background,
                                int64_t images, int64_t preds, int64_t gts, int64_t columns, float *cost,
                                int threads) try {
    bool bad = columns != gts + 1 || (scores && labels && !inside(labels, images * gts, classes, threads));
    for (const Term *term = terms; term < terms + count; ++term) {
        const bool of_classes = term->kind == SOFTMAX || term->kind == FOCAL,
                   of_boxes = term->kind != GIVEN && !of_classes;
        bad |= (term->kind == GIVEN && !given) || (of_classes && !(scores && labels && classes > 0)) ||
               (of_boxes && !(boxes && gt_boxes)) || (term->kind == L1 && !sizes);
    }
    if (bad) return -2;
    std::vector<Scratch> scratches(threads, Scratch(gts, classes));
#pragma omp parallel for num_threads(threads) reduction(| : bad) schedule(static)
    for (int part = 0; part < threads; ++part) {
        Scratch &gt = scratches[part];
        long end = 0, prepared = -1;  // after the last real ground truth, padded
        const int64_t rows = images * preds, last = rows * (part + 1) / threads;
        for (int64_t row = rows * part / threads; row < last; ++row) {
            const int64_t image = row / preds;
            if (image != prepared) {
                prepared = image, end = 0;
                for (long j = 0; j < gts; ++j) {
                    const int64_t from = image * gts + j;
                    gt.real[j] = gt_mask[from], gt.labels[j] = labels ? (int32_t)labels[from] : 0;
                    end = gt_mask[from] ? padded(j + 1) : end;
                    for (long axis = 0; axis < 4 && gt_boxes; ++axis)
                        gt.boxes[axis * gt.width + j] = gt_boxes[from * 4 + axis];
                }
            }
            float *sum = gt.sum.data();
            std::fill(sum, sum + gt.width, 0.0f);
            for (const Term *term = terms; term < terms + count && (!pred_mask || pred_mask[row]); ++term) {
                const float *box = boxes + row * 4, *logits = scores + row * classes;
                if (term->kind == GIVEN)
                    for (long j = 0; j < gts; ++j) sum[j] += (float)term->weight * given[row * gts + j];
                else if (term->kind == SOFTMAX)
                    add_softmax(*term, logits, classes, gt, end, sum);
                else if (term->kind == FOCAL)
                    add_focal(*term, logits, gt, end, sum);
                else if (term->kind == L1)
                    add_l1(*term, box, sizes + image * 4, gt, end, sum);
                else
                    add_overlaps(*term, box, gt, end, sum);
            }
            f8 fault = {};
            for (long j = 0; j < gt.width; j += 8) {
                const f8 x = load(&gt.real[j]) > 0.0f ? load(sum + j) : all(0.0f);
                store(sum + j, x), fault += 0.0f * x;
            }
            bad |= !(sum8(fault) == 0);
            std::copy(sum, sum + gts, cost + row * columns);
            cost[row * columns + gts] = (float)background;
        }
    }
    return bad;
} catch (const std::bad_alloc &) {
    return -1;
}
