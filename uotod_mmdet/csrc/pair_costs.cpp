// Match costs of all predictions with all ground truths in float32 on a CPU, all terms of a prediction at once; see
// uotod_mmdet/ops/pair_costs.py.

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "vector.h"

enum Kind : int64_t { GIVEN, IOU, GIOU, LOG_IOU, L1, SOFTMAX, FOCAL };

// One match cost as the caller passes it: a row of six numbers.
struct Term {
    double kind, weight, eps, alpha, gamma, centred;  // centred: L1 compares (centre, width and height)
};

// Inputs of the terms; an input that no term needs may be null.
struct Inputs {
    const float *boxes, *gt_boxes;  // (images, preds, 4), (images, gts, 4)
    const float *scores;            // (images, preds, classes)
    int64_t classes;
    const int64_t *labels;  // (images, gts)
    const float *sizes;     // L1: what coordinates are divided by, (images, 4)
    const float *given;     // terms that others computed, (images, preds, gts)

    bool suffice(const Term &term) const {
        if (term.kind == GIVEN) return given;
        if (term.kind == SOFTMAX || term.kind == FOCAL) return scores && labels && classes > 0;
        return boxes && gt_boxes && (sizes || term.kind != L1);
    }
};

namespace {

long padded(long count) { return (count + 7) / 8 * 8; }

// NaN stays NaN, unlike in max8.
f8 at_least(f8 x, float low) { return x < low ? all(low) : x; }

// A term and its ground truths: four coordinates or one label for each, padded to whole vectors, image by image.
class Costs {
   public:
    Costs(const Term &term, const Inputs &inputs, long images, long gts)
        : term_(term), inputs_(inputs), gts_(gts), width_(padded(gts)) {
        if (term.kind == SOFTMAX || term.kind == FOCAL) {
            labels_.assign(images * width_, 0);
            for (long image = 0; image < images; ++image)
                for (long j = 0; j < gts; ++j) labels_[image * width_ + j] = (int32_t)inputs.labels[image * gts + j];
        } else if (term.kind != GIVEN) {
            boxes_.assign(images * 4 * width_, 0.0f);
            for (long image = 0; image < images; ++image)
                for (long j = 0; j < gts; ++j) {
                    float box[4];
                    read(inputs.gt_boxes + (image * gts + j) * 4, image, box);
                    for (long axis = 0; axis < 4; ++axis) boxes_[(image * 4 + axis) * width_ + j] = box[axis];
                }
        }
    }

    // Add the costs of a prediction with the first `count` ground truths to `sum`; `scratch` holds the classes.
    void add(long image, long row, long count, float *sum, float *scratch) const {
        if (term_.kind == GIVEN) {
            const float *from = inputs_.given + row * gts_;
            for (long j = 0; j < count; ++j) sum[j] += from[j];
        } else if (term_.kind == SOFTMAX) {
            add_softmax(image, row, count, sum, scratch);
        } else if (term_.kind == FOCAL) {
            add_focal(image, row, count, sum);
        } else if (term_.kind == L1) {
            add_l1(image, row, count, sum);
        } else {
            add_overlaps(image, row, count, sum);
        }
    }

   private:
    Term term_;
    Inputs inputs_;
    long gts_, width_;
    std::vector<float> boxes_;
    std::vector<int32_t> labels_;

    // A box in the form that the term compares.
    void read(const float *from, long image, float (&box)[4]) const {
        std::copy(from, from + 4, box);
        if (term_.kind != L1) return;
        if (term_.centred)
            for (long axis = 0; axis < 2; ++axis) {
                box[axis] = (from[axis] + from[axis + 2]) / 2;
                box[axis + 2] = from[axis + 2] - from[axis];
            }
        for (long axis = 0; axis < 4; ++axis) box[axis] /= inputs_.sizes[image * 4 + axis];
    }

    void add_overlaps(long image, long row, long count, float *sum) const {
        const float *gt = boxes_.data() + image * 4 * width_, *box = inputs_.boxes + row * 4;
        const float weight = (float)term_.weight, eps = (float)term_.eps, least = 1e-6f;
        const f8 x1 = all(box[0]), y1 = all(box[1]), x2 = all(box[2]), y2 = all(box[3]);
        const f8 side_x = x2 - x1, side_y = y2 - y1, zero = {};
        for (long j = 0; j < count; j += 8) {
            const f8 a1 = load(gt + j), b1 = load(gt + width_ + j);
            const f8 a2 = load(gt + 2 * width_ + j), b2 = load(gt + 3 * width_ + j);
            const f8 gt_x = a2 - a1, gt_y = b2 - b1;
            // negative where the boxes do not overlap
            const f8 shared_x = min8(x2, a2) - max8(x1, a1), shared_y = min8(y2, b2) - max8(y1, b1);
            const f8 overlap = max8(shared_x, zero) * max8(shared_y, zero);
            const f8 both = at_least(side_x * side_y + gt_x * gt_y - overlap, least);
            f8 value = overlap / both;
            if (term_.kind == GIOU) {
                const f8 hull = at_least(side_x + gt_x - shared_x, 0) * at_least(side_y + gt_y - shared_y, 0);
                value += both / at_least(hull, least) - 1.0f;
            } else if (term_.kind == LOG_IOU) {
                value = log8(at_least(value, eps));
            }
            store(sum + j, load(sum + j) + weight * value);
        }
    }

    void add_l1(long image, long row, long count, float *sum) const {
        const float *gt = boxes_.data() + image * 4 * width_;
        float box[4];
        read(inputs_.boxes + row * 4, image, box);
        for (long j = 0; j < count; j += 8) {
            f8 value = {};
            for (long axis = 0; axis < 4; ++axis) value += abs8(load(gt + axis * width_ + j) - box[axis]);
            store(sum + j, load(sum + j) + (float)term_.weight * value);
        }
    }

    // The probability of the ground truth's class.
    void add_softmax(long image, long row, long count, float *sum, float *scratch) const {
        const float *scores = inputs_.scores + row * inputs_.classes;
        float few[8];
        if (inputs_.classes < 8) {
            std::fill(few, few + 8, -INFINITY);
            std::copy(scores, scores + inputs_.classes, few);
            scores = few;
        }
        const long classes = std::max(inputs_.classes, (int64_t)8), last = classes - 8;
        f8 size = {}, total = {};  // the total is NaN where a score is NaN or +inf
        for (long c = 0; c < classes; c += 8) size = max8(abs8(load(scores + std::min(c, last))), size);
        const bool small = largest8(size) <= 40;  // then exp cannot overflow, and the largest score is not needed
        const float largest = small ? 0.0f : *std::max_element(scores, scores + classes);
        for (long c = 0; c < classes; c += 8) {
            const long from = std::min(c, last);  // the last vector may hold scores that the one before it holds
            const f8 x = load(scores + from), value = small ? exp8_inside(x) : exp8(x - largest), zero = {};
            store(scratch + from, value);
            total += lanes8() >= (int32_t)(c - from) ? value : zero;
        }
        const float scale = (float)term_.weight / sum8(total);
        const int32_t *label = labels_.data() + image * width_;
        for (long j = 0; j < count; ++j) sum[j] += scratch[label[j]] * scale;
    }

    // mmdet's FocalLossCost.
    void add_focal(long image, long row, long count, float *sum) const {
        const float *score = inputs_.scores + row * inputs_.classes;
        const int32_t *label = labels_.data() + image * width_;
        const float alpha = (float)term_.alpha, gamma = (float)term_.gamma, eps = (float)term_.eps;
        const auto power = [gamma](f8 x) { return gamma == 2 ? x * x : exp8(gamma * log8(max8(x, all(1e-37f)))); };
        for (long j = 0; j < count; j += 8) {
            f8 x;
            for (long lane = 0; lane < 8; ++lane) x[lane] = score[label[j + lane]];
            const f8 prob = 1.0f / (1.0f + exp8(-x)), rest = 1.0f - prob;
            const f8 negative = (1 - alpha) * power(prob) * log8(rest + eps);
            const f8 positive = alpha * power(rest) * log8(prob + eps);
            const f8 value = x == x ? negative - positive : x;
            store(sum + j, load(sum + j) + (float)term_.weight * value);
        }
    }
};

}  // namespace

// Sum the terms to `cost` (images, preds, gts + 1); 0 where a mask (gt_mask (images, gts), pred_mask (images, preds)
// or null) is; `background` in the last column. Returns 1 if a sum is not finite, else 0; -1 if memory ran out, -2 if a
// label is not a class, an input is missing, or `columns` is not gts + 1.
extern "C" int uotod_pair_costs(const Term *terms, int64_t count, const float *boxes, const float *gt_boxes,
                                const float *scores, int64_t classes, const int64_t *labels, const float *sizes,
                                const float *given, const uint8_t *gt_mask, const uint8_t *pred_mask, double background,
                                int64_t images, int64_t preds, int64_t gts, int64_t columns, float *cost,
                                int threads) try {
    if (columns != gts + 1) return -2;
    const long width = padded(gts);
    const Inputs inputs{boxes, gt_boxes, scores, classes, labels, sizes, given};
    std::vector<Costs> costs;
    for (int64_t number = 0; number < count; ++number)
        if (!inputs.suffice(terms[number])) return -2;
    for (int64_t k = 0; scores && labels && k < images * gts; ++k)
        if (labels[k] < 0 || labels[k] >= classes) return -2;
    for (int64_t number = 0; number < count; ++number) costs.emplace_back(terms[number], inputs, images, gts);
    std::vector<int32_t> real(images * width, 0);
    std::vector<long> ends(images, 0);  // index after the last real ground truth
    for (long image = 0; image < images; ++image)
        for (long j = 0; j < gts; ++j)
            if (gt_mask[image * gts + j]) real[image * width + j] = -1, ends[image] = j + 1;
    std::vector<float> buffers(threads * (width + padded(classes)));
    int bad = 0;
#pragma omp parallel for num_threads(threads) reduction(| : bad) schedule(static)
    for (int part = 0; part < threads; ++part) {
        float *sum = buffers.data() + part * (width + padded(classes)), *scratch = sum + width;
        const int64_t rows = images * preds, first = rows * part / threads, last = rows * (part + 1) / threads;
        for (int64_t row = first; row < last; ++row) {
            const int64_t image = row / preds;
            std::fill(sum, sum + width, 0.0f);
            if (!pred_mask || pred_mask[row])
                for (const auto &term : costs) term.add(image, row, ends[image], sum, scratch);
            const int32_t *mask = real.data() + image * width;
            f8 fault = {};
            for (long j = 0; j < width; j += 8) {
                i8 on;
                std::memcpy(&on, mask + j, sizeof on);
                const f8 x = (f8)((i8)load(sum + j) & on);
                store(sum + j, x);
                fault += 0.0f * x;
            }
            bad |= !(sum8(fault) == 0);
            std::memcpy(cost + row * columns, sum, gts * sizeof(float));
            cost[row * columns + gts] = (float)background;
        }
    }
    return bad;
} catch (const std::bad_alloc &) {
    return -1;
}
