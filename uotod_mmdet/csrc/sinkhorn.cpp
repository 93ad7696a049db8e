// Entropic optimal transport in float32 on a CPU: the method of uotod_mmdet/ot/sinkhorn.py, one problem a thread.
//
// A problem's kernel is kept in tiles of 64 rows, [tile][column][row of the tile], so that an iteration reads it once,
// tile by tile out of the cache: sums of these rows, their scalings, and what they add to the sums of the columns.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "vector.h"

namespace {

constexpr long PARTS = 8, ROWS = 8 * PARTS;  // vectors and rows of a tile
constexpr long TILES = 8;                    // whose column sums are added in float before they go to double
constexpr double LIMIT = 30;                 // largest logarithm of a scaling that floats hold safely
constexpr double EXACT_BELOW = 128;          // as in ops/transport_problem.py, also the next
constexpr double PRECISE_BELOW = 1e12;
constexpr long NEWTON_COLUMNS = 128;
constexpr long CHUNK = 8;  // tiles that the Hessian goes through at once
constexpr float TINY = std::numeric_limits<float>::min();
constexpr float EPS = std::numeric_limits<float>::epsilon();
constexpr float DEAD = -1e30f;  // exponent of an entry whose row or column is empty
const double INF = std::numeric_limits<double>::infinity();

struct Options {
    long num_iter, check_every, newton_after;  // newton_after < 0: never
    double tol, absorb_above;
};

// exp(x) - 1
double expm1_of(double x) {
    if (std::fabs(x) > 1e-2) return std::expm1(x);
    return x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))));
}

// Rows or columns: the update of their scaling from sums over the scaled kernel is factor * (mass / sum)^power.
struct Side {
    long count = 0;  // padded to whole vectors by empty entries
    std::vector<float> mass, factor, scaling, log_scaling;
    std::vector<float> alive;  // 1 where there is mass and something to send it to, else 0
    std::vector<double> log_mass;
    // Potentials inside the kernel, at the last check, and what the scalings make of them; DEAD where empty.
    std::vector<double> absorbed, potential, trial;
    double rho = 0, power = 1;

    void fill(const float *masses, long real, long padded, double new_rho) {
        count = padded, rho = new_rho, power = std::isinf(rho) ? 1.0 : 1.0 - 1.0 / (rho + 1.0);
        for (auto *values : {&mass, &factor, &scaling, &log_scaling}) values->assign(padded, 0.0f);
        for (auto *values : {&log_mass, &absorbed, &potential, &trial}) values->assign(padded, DEAD);
        for (long i = 0; i < real; ++i) {
            if (!(masses[i] > 0)) continue;
            mass[i] = masses[i];
            log_mass[i] = i && masses[i] == masses[i - 1] ? log_mass[i - 1] : std::log((double)masses[i]);
        }
    }

    // To be called with the first potentials.
    void find_alive() {
        alive.resize(count);
        for (long i = 0; i < count; ++i) alive[i] = mass[i] > 0 && potential[i] > 0.5 * DEAD;
    }

    bool live(long i) const { return alive[i] > 0; }

    // Absorb the potentials: scalings are 1.
    void restart() {
        absorbed = potential, scaling = alive;
        for (long i = 0; power != 1 && i < count; ++i)
            factor[i] = live(i) ? (float)std::exp(std::min((power - 1.0) * absorbed[i], 88.0)) : 0.0f;
    }

    f8 update(long i, f8 sums) const {
        const f8 ratio = load(&mass[i]) / max8(sums, all(TINY));
        if (power == 1) return ratio;
        return load(&factor[i]) * exp8((float)power * log8(max8(ratio, all(TINY))));
    }

    // Read the scalings; returns the largest absolute logarithm of one, after a translation.
    float read_scalings() {
        for (long i = 0; i < count; i += 8) {
            const f8 logs = log8(max8(load(&scaling[i]), all(TINY)));
            store(&log_scaling[i], load(&alive[i]) > 0.0f ? logs : all(0.0f));
        }
        for (long i = 0; i < count; ++i) trial[i] = absorbed[i] + log_scaling[i];
        return reach(0);
    }

    // Largest absolute logarithm of a scaling after a translation.
    float reach(double shift) const {
        f8 most = {};
        for (long i = 0; i < count; i += 8) {
            const f8 value = abs8(load(&log_scaling[i]) + (float)shift);
            most = max8(most, load(&alive[i]) > 0.0f ? value : all(0.0f));
        }
        return largest8(most);
    }

    // Take the potentials of `trial`, moved by a translation.
    void move(double shift) {
        const float by = (float)std::exp(shift);
        for (long i = 0; i < count; ++i) scaling[i] *= by, potential[i] = trial[i] + shift;
    }

    // Update of the potential from -log of the sum of the kernel without it.
    double updated(long i, double minus_log_sum) const { return power * (log_mass[i] + minus_log_sum); }

    double ratio(double value) const { return std::isinf(rho) || rho == 0 ? 0.0 : value / rho; }

    // log sum of mass * exp(-trial / rho)
    double log_penalised() const {
        double largest = -INF, sum = 0;
        for (long i = 0; i < count; ++i)
            if (live(i)) largest = std::max(largest, log_mass[i] - ratio(trial[i]));
        if (std::isinf(largest)) return -INF;
        for (long i = 0; i < count; ++i)
            if (live(i)) sum += std::exp(log_mass[i] - ratio(trial[i]) - largest);
        return largest + std::log(sum);
    }

    // What the side adds to the dual.
    double reward() const {
        double sum = 0;
        for (long i = 0; i < count && rho != 0; ++i)
            if (live(i)) sum += mass[i] * (std::isinf(rho) ? potential[i] : -rho * expm1_of(-potential[i] / rho));
        return sum;
    }
};

// The t that maximises the dual of (f + t, g - t), f and g being `trial` (Sejourne et al., proposition 2).
double translation(const Side &a, const Side &b) {
    const double total = 1 / (1 / a.rho + 1 / b.rho);
    if (std::isinf(total) || total == 0) return 0;
    const double mass_a = a.log_penalised(), mass_b = b.log_penalised();
    return std::isinf(mass_a) || std::isinf(mass_b) ? 0 : total * (mass_a - mass_b);
}

// T is the precision of the exponents -C/reg and of the potentials added to them.
template <class T>
class Solver {
   public:
    double error = INF;

    // Returns the iterations done; `error` is the largest change that the next update would make.
    long solve(const float *cost, const float *mass_a, const float *mass_b, long num_rows, long num_columns, double reg,
               double rho_a, double rho_b, const Options &options, float scale, float *plan, double *f, double *g) {
        load_problem(cost, mass_a, mass_b, num_rows, num_columns, reg, rho_a, rho_b);
        start();
        long iteration = 0;
        bool fresh = false;
        while (iteration < options.num_iter) {
            if (!fresh) restart();
            if (options.newton_after >= 0 && iteration >= options.newton_after && columns <= NEWTON_COLUMNS) {
                iteration = newton(iteration, options);
                break;
            }
            const long steps = std::min(options.check_every, options.num_iter - iteration);
            for (long number = 0; number < steps; ++number) iterate();
            iteration += steps;
            const double largest = look();
            fresh = largest < options.absorb_above;
            if (!(largest < LIMIT)) rescue(steps), fresh = true;
            if (!(error > options.tol)) break;
        }
        write(plan, scale, f, g);
        return iteration;
    }

   private:
    using V = typename std::conditional<std::is_same<T, float>::value, f8, d8>::type;

    long rows = 0, width = 0, tiles = 0;  // of the problem
    long columns = 0;                     // that have mass; the others are left out
    std::vector<long> places;             // of these columns in the problem
    size_t capacity = 0;
    std::unique_ptr<T[]> exponents;   // of the kernel without potentials
    std::unique_ptr<float[]> kernel;  // with those that are absorbed
    std::vector<float> lanes;         // for each column, eight partial sums
    std::vector<float> masses;        // of the columns
    std::vector<float> row_mass;      // of the plan that `dual` found
    std::vector<float> float_sums;
    std::vector<float> weights, weighted;  // what rows, and a column's entries, count in the Hessian
    std::vector<double> column_sums, hessian, gradient;
    Side a, b;

    // Of the i-th row and the first column; the next column is ROWS further.
    const T *exponent(long i) const { return exponents.get() + i / ROWS * columns * ROWS + i % ROWS; }
    float *entry(long i) { return kernel.get() + i / ROWS * columns * ROWS + i % ROWS; }

    static V vector(const T *from) {
        V x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    static V converted(const double *from) {
        d8 x;
        std::memcpy(&x, from, sizeof x);
        return __builtin_convertvector(x, V);
    }
    static f8 narrow(V x) { return __builtin_convertvector(x, f8); }
    static V every(T x) { return V{} + x; }
    static T largest(V x) {
        T most = x[0];
        for (int lane = 1; lane < 8; ++lane) most = std::max(most, (T)x[lane]);
        return most;
    }

    void load_problem(const float *cost, const float *mass_a, const float *mass_b, long num_rows, long num_columns,
                      double reg, double rho_a, double rho_b) {
        rows = num_rows, width = num_columns, tiles = (rows + ROWS - 1) / ROWS, error = INF;
        places.clear(), masses.clear();
        for (long j = 0; j < width; ++j)
            if (mass_b[j] > 0) places.push_back(j), masses.push_back(mass_b[j]);
        columns = (long)places.size();
        const size_t size = tiles * ROWS * columns;
        if (capacity < size) {  // not filled, as a vector would be
            exponents.reset(new T[size]), kernel.reset(new float[size]);
            capacity = size;
        }
        row_mass.resize(tiles * ROWS), lanes.resize(columns * 8), column_sums.resize(columns);
        float_sums.assign((columns + 7) / 8 * 8, 0.0f);
        a.fill(mass_a, rows, tiles * ROWS, rho_a), b.fill(masses.data(), columns, (columns + 7) / 8 * 8, rho_b);
        const T scale = (T)(-1.0 / reg);
        for (long first = 0; first < rows; first += ROWS)
            for (long j = 0; j < columns; ++j) {
                T *to = exponents.get() + first * columns + j * ROWS;
                const float *from = cost + first * width + places[j];
                const long count = std::min(ROWS, rows - first);
                for (long r = 0; r < count; ++r) to[r] = a.mass[first + r] > 0 ? (T)from[r * width] * scale : (T)DEAD;
                std::fill(to + count, to + ROWS, (T)DEAD);
            }
    }

    // Potentials that centre the kernel: the largest entry of each row and column is near 1.
    void start() {
        const T alive = (T)(0.5f * DEAD);
        std::vector<V> peaks(columns, every((T)DEAD));
        for (long i = 0; i < a.count; i += 8) {
            const T *from = exponent(i);
            V peak = every((T)DEAD);
            for (long j = 0; j < columns; ++j) {
                const V x = vector(from + j * ROWS);
                peak = x > peak ? x : peak;
            }
            const V f = peak > alive ? -peak : every((T)DEAD);
            for (int lane = 0; lane < 8; ++lane) a.potential[i + lane] = f[lane];
            for (long j = 0; j < columns; ++j) {
                const V x = vector(from + j * ROWS) + f;
                peaks[j] = x > peaks[j] ? x : peaks[j];
            }
        }
        for (long j = 0; j < columns; ++j) {
            const T peak = largest(peaks[j]);
            b.potential[j] = peak > alive ? -(double)peak : (double)DEAD;
        }
        a.find_alive(), b.find_alive();
    }

    // The kernel at the potentials, scalings 1.
    void restart() {
        a.restart(), b.restart();
        for (long i = 0; i < a.count; i += 8) {
            const V f = converted(&a.absorbed[i]);
            for (long j = 0; j < columns; ++j)
                store(entry(i) + j * ROWS, exp8(narrow(vector(exponent(i) + j * ROWS) + f + (T)b.absorbed[j])));
        }
    }

    // Call of_rows(i, sums of eight rows, columns scaled), which returns the scalings of these rows, tile by tile; and
    // sum the columns, their rows scaled.
    template <bool COLUMNS, class OfRows>
    void sweep(OfRows of_rows) {
        std::fill(column_sums.begin(), column_sums.end(), 0.0);
        std::fill(lanes.begin(), lanes.end(), 0.0f);
        for (long tile = 0; tile < tiles; ++tile) {
            const float *column = entry(tile * ROWS);
            f8 u[PARTS] = {};
            for (long j = 0; j < columns; ++j, column += ROWS)
                for (long part = 0; part < PARTS; ++part) u[part] += load(column + part * 8) * b.scaling[j];
            for (long part = 0; part < PARTS; ++part) u[part] = of_rows(tile * ROWS + part * 8, u[part]);
            if (COLUMNS) add_columns(tile, u);
        }
    }

    void add_columns(long tile, const f8 (&u)[PARTS]) {
        f8 by[PARTS];  // a copy that no store can touch stays in registers
        std::copy(u, u + PARTS, by);
        const float *column = entry(tile * ROWS);
        float *to = lanes.data();
        for (long j = 0; j < columns; ++j, column += ROWS, to += 8) {
            f8 even = load(to), odd = {};
            for (long part = 0; part < PARTS; part += 2) {
                even += load(column + part * 8) * by[part];
                odd += load(column + part * 8 + 8) * by[part + 1];
            }
            store(to, even + odd);
        }
        if ((tile + 1) % TILES && tile + 1 < tiles) return;
        for (long j = 0; j < columns; ++j) column_sums[j] += sum8(load(&lanes[j * 8]));
        std::fill(lanes.begin(), lanes.end(), 0.0f);
    }

    void iterate() {
        sweep<true>([this](long i, f8 sums) {
            const f8 u = a.update(i, sums);
            store(&a.scaling[i], u);
            return u;
        });
        std::copy(column_sums.begin(), column_sums.end(), float_sums.begin());
        for (long j = 0; j < b.count; j += 8) store(&b.scaling[j], b.update(j, load(&float_sums[j])));
    }

    // Remove the translation and find `error`. Returns the largest logarithm of a scaling; where floats hold it, the
    // potentials are brought up to date.
    double look() {
        a.read_scalings(), b.read_scalings();
        const double shift = translation(a, b), most = std::max(a.reach(shift), b.reach(-shift));
        if (!(most < LIMIT)) return most;
        const float along = (float)((a.power - 1) * shift);
        f8 change = {};
        sweep<false>([&](long i, f8 sums) {
            const f8 by = abs8(log8(max8(a.update(i, sums), all(TINY))) - load(&a.log_scaling[i]) + along);
            return change = max8(change, load(&a.alive[i]) > 0.0f ? by : all(0.0f));
        });
        error = std::max((double)largest8(change), std::fabs((1 - b.power) * shift));
        a.move(shift), b.move(-shift);
        return most;
    }

    // Update the potentials of eight rows by logsumexp: slow, and safe for any cost.
    void update_rows_by_logs(long i) {
        const T *from = exponent(i);
        V peak = every((T)DEAD);
        f8 sum = {};
        for (long j = 0; j < columns; ++j) {
            const V x = vector(from + j * ROWS) + (T)b.potential[j];
            peak = x > peak ? x : peak;
        }
        for (long j = 0; j < columns; ++j) sum += exp8(narrow(vector(from + j * ROWS) + (T)b.potential[j] - peak));
        const f8 log_sum = log8(max8(sum, all(TINY)));
        for (long k = i; k < i + 8; ++k)
            if (a.live(k)) a.potential[k] = a.updated(k, -((double)peak[k - i] + log_sum[k - i]));
    }

    // Repeat the last iterations, from the potentials of the last check, by logsumexp.
    void rescue(long steps) {
        for (long number = 0; number < steps; ++number) {
            std::vector<double> peaks(columns, DEAD), sums(columns, 0.0);
            for (long i = 0; i < a.count; i += 8) {
                update_rows_by_logs(i);
                const V f = converted(&a.potential[i]);
                for (long j = 0; j < columns; ++j) {
                    const V x = vector(exponent(i) + j * ROWS) + f;
                    const double peak = std::max(peaks[j], (double)largest(x));
                    if (peak > peaks[j]) sums[j] *= std::exp(peaks[j] - peak), peaks[j] = peak;
                    sums[j] += sum8(exp8(narrow(x - (T)peak)));
                }
            }
            for (long j = 0; j < columns; ++j)
                if (b.live(j)) b.potential[j] = b.updated(j, -(peaks[j] + std::log(sums[j])));
        }
        a.trial = a.potential, b.trial = b.potential;
        const double shift = translation(a, b);
        a.move(shift), b.move(-shift);
        restart();
        look();
        error = std::max(error, std::fabs((1 - b.power) * shift));
    }

    // Maximise the semi-dual from the columns' potentials; see newton in uotod_mmdet/ops/newton.py.
    long newton(long iteration, const Options &options) {
        double radius = 4, value = dual();
        std::vector<double> sinkhorn(columns);
        while (true) {
            error = 0;
            for (long j = 0; j < columns; ++j) {
                if (!b.live(j)) continue;
                sinkhorn[j] = b.updated(j, b.potential[j] - std::log(column_sums[j]));
                error = std::max(error, std::fabs(sinkhorn[j] - b.potential[j]));
            }
            if (iteration >= options.num_iter || !(error > options.tol)) return iteration;
            ++iteration;
            newton_step();
            for (long j = 0; j < columns; ++j)
                if (b.live(j)) b.potential[j] += std::max(std::min(gradient[j], radius), -radius);
            const double new_value = dual();
            const bool good = new_value >= value - 10 * EPS * std::fabs(value);
            radius = good ? 4 * radius : std::max(radius / 8, 0.1);
            value = new_value;
            if (!good) {
                for (long j = 0; j < columns; ++j)
                    if (b.live(j)) b.potential[j] = sinkhorn[j];
                value = dual();
            }
        }
    }

    // The best scalings of the rows for the potentials of the columns, row and column sums of their plan, and the value
    // of the dual there. The kernel serves as long as floats hold the scalings.
    double dual() {
        double mass = 0, most = 0;
        for (long j = 0; j < columns; ++j) {
            if (!b.live(j)) continue;
            const double log_v = b.potential[j] - b.absorbed[j];
            b.scaling[j] = (float)std::exp(log_v);
            most = std::max(most, std::fabs(log_v));
        }
        if (most < LIMIT) {
            sweep<true>([&](long i, f8 sums) {
                const f8 u = a.update(i, sums), row = u * sums;
                store(&a.scaling[i], u), store(&row_mass[i], row);
                mass += sum8(row);
                return u;
            });
            most = a.read_scalings();
        }
        if (most < LIMIT) {
            a.potential = a.trial;
        } else {
            for (long i = 0; i < a.count; i += 8) update_rows_by_logs(i);
            restart();
            mass = 0;
            sweep<true>([&](long i, f8 sums) {
                store(&row_mass[i], sums);
                mass += sum8(sums);
                return load(&a.scaling[i]);
            });
        }
        // Of a column that all rows avoid, less than floats hold: an upper bound, so that updates fall short.
        for (long j = 0; j < columns; ++j) column_sums[j] = std::max(column_sums[j] * b.scaling[j], (double)TINY);
        return a.reward() + b.reward() - mass;
    }

    // Newton's step, to `gradient`.
    void newton_step() {
        const long n = columns;
        hessian.assign(n * n, 0.0), gradient.assign(n, 0.0);
        weights.resize(a.count), weighted.resize(CHUNK * ROWS);
        for (long i = 0; i < a.count; i += 8) {
            const f8 row = load(&row_mass[i]), u = load(&a.scaling[i]);
            store(&weights[i], row > 0.0f ? (float)a.power * u * u / row : all(0.0f));
        }
        for (long first = 0; first < a.count; first += CHUNK * ROWS) {
            const long last = std::min(first + CHUNK * ROWS, a.count);
            for (long j = 0; j < n; ++j) {
                for (long i = first; i < last; i += 8)
                    store(&weighted[i - first], load(entry(i) + j * ROWS) * load(&weights[i]));
                for (long k = j; k < n; k += 4) {  // four at a time, as each needs the weighted column
                    f8 sums[4] = {}, odd[4] = {};
                    for (long tile = first; tile < last; tile += ROWS) {
                        const float *x = &weighted[tile - first], *y[4];
                        for (long l = 0; l < 4; ++l) y[l] = entry(tile) + std::min(k + l, n - 1) * ROWS;
                        for (long r = 0; r < ROWS; r += 16)
                            for (long l = 0; l < 4; ++l) {
                                sums[l] += load(x + r) * load(y[l] + r);
                                odd[l] += load(x + r + 8) * load(y[l] + r + 8);
                            }
                    }
                    for (long l = 0; l < 4 && k + l < n; ++l)
                        hessian[j * n + k + l] -= (double)sum8(sums[l] + odd[l]) * b.scaling[j] * b.scaling[k + l];
                }
            }
        }
        double total = 0, most = 0;
        std::vector<double> curvature(n);
        for (long j = 0; j < n; ++j) {
            const double wanted = b.live(j) ? std::exp(b.log_mass[j] - b.ratio(b.potential[j])) : 0;
            curvature[j] = column_sums[j] + (std::isinf(b.rho) ? 0 : wanted / b.rho);
            gradient[j] = b.live(j) ? wanted - column_sums[j] : 0;
            total += column_sums[j], most = std::max(most, curvature[j]);
        }
        // The dual of a balanced problem does not change along (1, ..., 1): one rank more keeps the step off that.
        if (std::isinf(a.rho) && std::isinf(b.rho))
            for (long j = 0; j < n; ++j)
                for (long k = j; k < n; ++k) hessian[j * n + k] += column_sums[j] * (column_sums[k] / total);
        for (long j = 0; j < n; ++j) hessian[j * n + j] += b.live(j) ? curvature[j] * (1 + EPS) + EPS * 1e-3 * most : 1;
        std::vector<double> solution = gradient;
        const bool solved = eliminate(hessian, solution, n);
        for (long j = 0; j < n; ++j) gradient[j] = solved ? solution[j] : gradient[j] / curvature[j];
    }

    // Solve with a symmetric positive matrix, given by its upper half; false where it is not positive.
    static bool eliminate(std::vector<double> &m, std::vector<double> &x, long n) {
        for (long k = 0; k < n; ++k) {
            const double *pivot = &m[k * n];
            if (!(pivot[k] > 0)) return false;
            const double inverse = 1 / pivot[k];
            for (long j = k + 1; j < n; ++j) {
                const double factor = pivot[j] * inverse;
                double *row = &m[j * n];
#pragma GCC ivdep
                for (long l = j; l < n; ++l) row[l] -= factor * pivot[l];
                x[j] -= factor * x[k];
            }
        }
        for (long k = n - 1; k >= 0; --k) {
            for (long l = k + 1; l < n; ++l) x[k] -= m[k * n + l] * x[l];
            x[k] /= m[k * n + k];
            if (!std::isfinite(x[k])) return false;
        }
        return true;
    }

    // The kernel, scaled by its scalings and `scale`, and the potentials, -inf where a side is empty.
    void write(float *plan, float scale, double *f, double *g) {
        std::fill(g, g + width, -INF);
        for (long j = 0; j < columns; ++j)
            if (b.live(j)) g[places[j]] = b.absorbed[j] + std::log((double)b.scaling[j]);
        for (long i = 0; i < rows; ++i) {
            const float *from = entry(i), u = scale * a.scaling[i];
            float *to = plan + i * width;
            f[i] = a.live(i) ? a.absorbed[i] + std::log((double)a.scaling[i]) : -INF;
            if (columns < width) std::fill(to, to + width, 0.0f);
            for (long j = 0; j < columns; ++j) to[places[j]] = u * from[j * ROWS] * b.scaling[j];
        }
    }
};

// Largest absolute value; NaN or inf where there is one.
float largest_of(const float *values, long count) {
    f8 most = {}, fault = {};  // 0 as long as all are finite
    each8(values, count, 0, [&](f8 x, int64_t, int64_t) { most = max8(most, abs8(x)), fault += 0.0f * x; });
    return largest8(most) + sum8(fault);
}

bool are_masses(const float *values, long count) {
    bool good = true;
    for (long i = 0; i < count; ++i) good &= values[i] >= 0 && values[i] < INF;
    return good;
}

}  // namespace

// Checksum of the sources of this build.
extern "C" int64_t uotod_sources() { return UOTOD_SOURCES; }

// Solve `batch` problems of `rows` x `columns`; rho: weight of a side's penalty in units of reg, inf for a constraint;
// relative: whether reg is in units of a problem's largest absolute cost.
// Returns 0; 1 if a problem is not valid (NaN, infinite, negative where not allowed, costs too large beside reg); -1 if
// memory ran out.
extern "C" int uotod_sinkhorn(const float *cost, const float *a, const float *b, const double *reg, const double *rho_a,
                              const double *rho_b, int64_t relative, int64_t batch, int64_t rows, int64_t columns,
                              int64_t num_iter, int64_t check_every, int64_t newton_after, double tol,
                              double absorb_above, const float *scale, float *plan, double *f, double *g, int64_t *done,
                              double *error, int threads) {
    const Options options{(long)num_iter, (long)check_every, (long)newton_after, tol, absorb_above};
    int failed = 0, unfit = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed, unfit)
    {
        Solver<float> in_float;
        Solver<double> in_double;
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < batch; ++index) {
            const int64_t size = rows * columns;
            const float *from = cost + index * size, largest = largest_of(from, size);
            const double unit = reg[index] * (relative && largest > 0 ? largest : 1);
            if (!(largest < PRECISE_BELOW * unit && unit < INF && rho_a[index] >= 0 && rho_b[index] >= 0) ||
                !are_masses(a + index * rows, rows) || !are_masses(b + index * columns, columns)) {
                unfit = 1;
                continue;
            }
            auto solve = [&](auto &solver) {
                done[index] = solver.solve(from, a + index * rows, b + index * columns, rows, columns, unit,
                                           rho_a[index], rho_b[index], options, scale[index], plan + index * size,
                                           f + index * rows, g + index * columns);
                error[index] = solver.error;
            };
            try {
                if (largest < EXACT_BELOW * unit)
                    solve(in_float);
                else
                    solve(in_double);
            } catch (const std::bad_alloc &) {
                failed = 1;
            }
        }
    }
    return failed ? -1 : unfit;
}
