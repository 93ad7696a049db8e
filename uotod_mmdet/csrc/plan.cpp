// The pairs of a plan and their statistics; see uotod_mmdet/ops/plan.py.

#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "rows.h"

// Pairs of a plan (images, preds, columns), whose last column is the background, that weigh at least `least`, and more
// than 0. Unless `fill` is set they are counted only: the number in each of `threads` parts goes to `counts`, from
// which the second call starts.
extern "C" int uotod_expand(const float *plan, int64_t images, int64_t preds, int64_t columns, double least_,
                            int64_t *counts, int64_t fill, int64_t *rows, int64_t *truths, int64_t *of_images,
                            float *weights, float *background, int threads) {
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
