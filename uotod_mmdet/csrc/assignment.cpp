// One-to-one assignment at the least cost by shortest augmenting paths (Jonker and Volgenant; Crouse, IEEE TAES 2016),
// with the order of steps and ties of scipy.optimize.linear_sum_assignment, one problem a thread.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

namespace {

class Solver {
   public:
    // The column of each row of a row-major matrix with no more rows than columns; none where costs are not finite.
    const std::vector<long> &solve(const std::vector<double> &cost, long rows, long columns) {
        cost_ = cost.data(), columns_ = columns;
        of_row_.assign(rows, 0.0), of_column_.assign(columns, 0.0);
        column_.assign(rows, -1), row_.assign(columns, -1), from_.assign(columns, -1);
        distance_.resize(columns), left_.resize(columns);
        double zero = 0;  // NaN where a cost is not finite
#pragma omp simd reduction(+ : zero)
        for (size_t k = 0; k < cost.size(); ++k) zero += cost[k] - cost[k];
        bool finite = zero == 0;
        for (long row = 0; finite && row < rows; ++row) finite = augment(row);
        if (!finite) column_.clear();
        return column_;
    }

   private:
    const double *cost_ = nullptr;
    long columns_ = 0;
    std::vector<double> of_row_, of_column_, distance_;  // dual variables; lengths of the shortest paths
    std::vector<long> column_, row_;                     // the assignment so far, -1 where there is none
    std::vector<long> from_, left_, tree_;               // row before each column on its path; columns not reached

    // False where no finite path is left.
    bool augment(long start) {
        const double inf = std::numeric_limits<double>::infinity();
        std::fill(distance_.begin(), distance_.end(), inf);
        for (long j = 0; j < columns_; ++j) left_[j] = columns_ - 1 - j;
        tree_.clear();
        long count = columns_, row = start, sink = -1;
        double length = 0;
        while (sink < 0) {
            const double *cost = cost_ + row * columns_;
            double least = inf;
            long chosen = -1;
            for (long place = 0; place < count; ++place) {
                const long j = left_[place];
                const double through = length + cost[j] - of_row_[row] - of_column_[j];
                if (through < distance_[j]) distance_[j] = through, from_[j] = row;
                if (distance_[j] < least || (distance_[j] == least && row_[j] < 0))
                    least = distance_[j], chosen = place;
            }
            if (chosen < 0) return false;
            length = least;
            const long j = left_[chosen];
            left_[chosen] = left_[--count];
            tree_.push_back(j);
            if (row_[j] < 0)
                sink = j;
            else
                row = row_[j];
        }
        of_row_[start] += length;
        for (const long j : tree_) {
            of_column_[j] -= length - distance_[j];
            if (row_[j] >= 0) of_row_[row_[j]] += length - distance_[j];
        }
        for (long j = sink;;) {
            const long i = from_[j];
            row_[j] = i;
            std::swap(column_[i], j);
            if (i == start) return true;
        }
    }
};

}  // namespace

// The column of each row, -1 without one, `columns` (batch, num_rows). Row i of problem b begins at
// cost + (b * num_rows + i) * stride; masks (batch, num_rows) and (batch, num_columns) are 0 on what takes no part.
// Returns 0; 1 where a cost is not finite; -1 where memory ran out.
extern "C" int uotod_assign(const float *cost, int64_t stride, const uint8_t *row_mask, const uint8_t *column_mask,
                            int64_t batch, int64_t num_rows, int64_t num_columns, int64_t *columns, int threads) {
    int failed = 0, infinite = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed, infinite)
    {
        Solver solver;
        std::vector<long> rows, places;
        std::vector<double> matrix;
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < batch; ++index) try {
                rows.clear(), places.clear();
                for (long i = 0; i < num_rows; ++i)
                    if (row_mask[index * num_rows + i]) rows.push_back(i);
                for (long j = 0; j < num_columns; ++j)
                    if (column_mask[index * num_columns + j]) places.push_back(j);
                const long n = (long)rows.size(), m = (long)places.size();
                int64_t *to = columns + index * num_rows;
                std::fill(to, to + num_rows, -1);
                matrix.resize(n * m);
                const bool transposed = m < n;
                for (long i = 0; i < n; ++i) {
                    const float *from = cost + (index * num_rows + rows[i]) * stride;
                    for (long j = 0; j < m; ++j) matrix[transposed ? j * n + i : i * m + j] = from[places[j]];
                }
                const auto &found = solver.solve(matrix, std::min(n, m), std::max(n, m));
                if ((long)found.size() < std::min(n, m)) infinite = 1;
                for (size_t i = 0; i < found.size(); ++i)
                    if (transposed)
                        to[rows[found[i]]] = places[i];
                    else
                        to[rows[i]] = places[found[i]];
            } catch (const std::bad_alloc &) {
                failed = 1;
            }
    }
    return failed ? -1 : infinite;
}
