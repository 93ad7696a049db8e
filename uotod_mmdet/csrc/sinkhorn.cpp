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
    std::vector<double> absorbed;   // potential inside the kernel, DEAD where empty
    std::vector<double> potential;  // at the last check, likewise
    double rho = 0, power = 1;

    void fill(const float *masses, long real, long padded, double new_rho) {
        count = padded;
        for (auto *values : {&mass, &factor, &scaling, &log_scaling}) values->assign(padded, 0.0f);
        for (auto *values : {&log_mass, &absorbed, &potential}) values->assign(padded, DEAD);
        rho = new_rho;
        power = std::isinf(rho) ? 1.0 : 1.0 - 1.0 / (rho + 1.0);
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
    f8 live8(long i) const { return load(&alive[i]); }

    // Absorb the potentials: scalings are 1.
    void restart() {
        absorbed = potential;
        for (long i = 0; i < count; i += 8) {
            const f8 on = live8(i);
            store(&scaling[i], on);
            if (power == 1) continue;
            f8 exponent;
            for (int lane = 0; lane < 8; ++lane) exponent[lane] = (float)((power - 1.0) * absorbed[i + lane]);
            store(&factor[i], on > 0.0f ? exp8(exponent) : all(0.0f));
        }
    }

    f8 update(long i, f8 sums) const {
        const f8 ratio = load(&mass[i]) / max8(sums, all(TINY));
        if (power == 1) return ratio;
        return load(&factor[i]) * exp8((float)power * log8(max8(ratio, all(TINY))));
    }

    // Update of the potential from -log of the sum of the kernel without it.
    double updated(long i, double minus_log_sum) const { return power * (log_mass[i] + minus_log_sum); }

    double ratio(double value) const { return std::isinf(rho) || rho == 0 ? 0.0 : value / rho; }

    // log sum of mass * exp(-potential / rho)
    double log_penalised(const std::vector<double> &potentials) const {
        double largest = -INF, sum = 0;
        for (long i = 0; i < count; ++i)
            if (live(i)) largest = std::max(largest, log_mass[i] - ratio(potentials[i]));
        if (std::isinf(largest)) return -INF;
        for (long i = 0; i < count; i += 8) {
            f8 exponent;
            for (int lane = 0; lane < 8; ++lane)
                exponent[lane] =
                    live(i + lane) ? (float)(log_mass[i + lane] - ratio(potentials[i + lane]) - largest) : DEAD;
            sum += sum8(exp8(exponent));
        }
        return largest + std::log(sum);
    }

    // What the side adds to the dual.
    double reward() const {
        double sum = 0;
        if (rho == 0) return 0;
        for (long i = 0; i < count; ++i)
            if (live(i)) sum += mass[i] * (std::isinf(rho) ? potential[i] : -rho * expm1_of(-potential[i] / rho));
        return sum;
    }
};

// The t that maximises the dual of (f + t, g - t) (Sejourne et al., proposition 2).
double translation(const Side &a, const std::vector<double> &f, const Side &b, const std::vector<double> &g) {
    const double total = 1 / (1 / a.rho + 1 / b.rho);
    if (std::isinf(total) || total == 0) return 0;
    const double mass_a = a.log_penalised(f), mass_b = b.log_penalised(g);
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
        write(plan, scale);
        write_potentials(f, g);
        return iteration;
    }

   private:
    using V = typename std::conditional<std::is_same<T, float>::value, f8, d8>::type;

    long rows = 0, width = 0, tiles = 0;  // of the problem
    long columns = 0;                     // that have mass; the others are left out
    std::vector<long> places;             // of these columns in the problem
    size_t capacity = 0;
    std::unique_ptr<T[]> exponents;        // of the kernel without potentials
    std::unique_ptr<float[]> kernel;       // with those that are absorbed
    std::vector<float> lanes;              // for each column, eight partial sums
    std::vector<V> peaks;                  // likewise
    std::vector<float> masses;             // of the columns
    std::vector<float> row_mass;           // of the plan that `dual` found
    std::vector<float> weights, weighted;  // what rows, and a column's entries, count in the Hessian
    std::vector<double> column_sums, hessian, gradient, new_f, new_g;
    Side a, b;

    const T *exponent(long tile) const { return exponents.get() + tile * columns * ROWS; }
    float *entries(long tile) { return kernel.get() + tile * columns * ROWS; }

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

    void load_problem(const float *cost, const float *mass_a, const float *mass_b, long num_rows, long num_columns,
                      double reg, double rho_a, double rho_b) {
        rows = num_rows, width = num_columns, tiles = (rows + ROWS - 1) / ROWS;
        places.clear(), masses.clear();
        for (long j = 0; j < width; ++j)
            if (mass_b[j] > 0) places.push_back(j), masses.push_back(mass_b[j]);
        columns = (long)places.size();
        const size_t size = tiles * ROWS * columns;
        if (capacity < size) {  // not filled, as a vector would be
            exponents.reset(new T[size]), kernel.reset(new float[size]);
            capacity = size;
        }
        row_mass.resize(tiles * ROWS), lanes.resize(columns * 8), peaks.resize(columns), column_sums.resize(columns);
        a.fill(mass_a, rows, tiles * ROWS, rho_a), b.fill(masses.data(), columns, (columns + 7) / 8 * 8, rho_b);
        const T scale = (T)(-1.0 / reg);
        for (long i = 0; i < a.count; i += 8) {
            T *to = exponents.get() + i / ROWS * columns * ROWS + i % ROWS;
            const f8 row_masses = load(&a.mass[i]);
            for (long j = 0; j < columns; j += 8) {
                const long count = std::min(columns - j, 8L), begin = neighbours(j, count);
                f8 block[8] = {};
                for (long r = 0; r < 8 && i + r < rows; ++r) {
                    const float *from = cost + (i + r) * width;
                    if (begin) block[r] = load(from + places[j]);
                    for (long k = begin; k < count; ++k)
                        block[r] = lanes8() == (int32_t)k ? all(from[places[j + k]]) : block[r];
                }
                transpose8(block);
                for (long k = 0; k < count; ++k) {
                    const V value = __builtin_convertvector(block[k], V) * scale;
                    const V live = __builtin_convertvector(row_masses, V) > (T)0 ? value : every((T)DEAD);
                    std::memcpy(to + (j + k) * ROWS, &live, sizeof live);
                }
            }
        }
        error = INF;
    }

    // How many of `count` columns from the j-th on lie side by side in the problem; 0 where it has not eight from
    // there.
    long neighbours(long j, long count) const {
        if (places[j] + 8 > width) return 0;
        long number = 1;
        while (number < count && places[j + number] == places[j] + number) ++number;
        return number;
    }

    // Potentials that centre the kernel: the largest entry of each row and column is near 1.
    void start() {
        const T alive = (T)(0.5f * DEAD);
        std::fill(peaks.begin(), peaks.end(), every((T)DEAD));
        for (long tile = 0; tile < tiles; ++tile)
            for (long r = 0; r < ROWS; r += 8) {
                const T *from = exponent(tile) + r;
                V peak = every((T)DEAD);
                for (long j = 0; j < columns; ++j) {
                    const V x = vector(from + j * ROWS);
                    peak = x > peak ? x : peak;
                }
                const V f = peak > alive ? -peak : every((T)DEAD);
                const d8 potential = __builtin_convertvector(f, d8);
                std::memcpy(&a.potential[tile * ROWS + r], &potential, sizeof potential);
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

    static T largest(V x) {
        T most = x[0];
        for (int lane = 1; lane < 8; ++lane) most = std::max(most, (T)x[lane]);
        return most;
    }

    // The kernel at the potentials, scalings 1.
    void restart() {
        a.restart(), b.restart();
        for (long tile = 0; tile < tiles; ++tile)
            for (long r = 0; r < ROWS; r += 8) {
                const V f = converted(&a.absorbed[tile * ROWS + r]);
                for (long j = 0; j < columns; ++j) {
                    const V x = vector(exponent(tile) + j * ROWS + r) + f + (T)b.absorbed[j];
                    store(entries(tile) + j * ROWS + r, exp8(narrow(x)));
                }
            }
    }

    // Sums of the rows of a tile, its columns scaled.
    void row_sums(const float *tile, f8 (&sum)[PARTS]) const {
        for (auto &value : sum) value = all(0.0f);
        for (long j = 0; j < columns; ++j)
            for (long part = 0; part < PARTS; ++part) sum[part] += load(tile + j * ROWS + part * 8) * b.scaling[j];
    }

    void clear_columns() {
        std::fill(column_sums.begin(), column_sums.end(), 0.0);
        std::fill(lanes.begin(), lanes.end(), 0.0f);
    }

    // Add a tile, its rows scaled, to the sums of the columns.
    void add_columns(long tile, const f8 (&u)[PARTS]) {
        f8 by[PARTS];  // a copy that no store can touch stays in registers
        std::copy(u, u + PARTS, by);
        const float *column = entries(tile);
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
        for (long j = 0; j < columns; ++j) {
            column_sums[j] += sum8(load(&lanes[j * 8]));
            store(&lanes[j * 8], all(0.0f));
        }
    }

    f8 column_sums8(long j) const {
        f8 sum = {};
        for (long lane = 0; lane < 8 && j + lane < columns; ++lane) sum[lane] = (float)column_sums[j + lane];
        return sum;
    }

    void iterate() {
        clear_columns();
        for (long tile = 0; tile < tiles; ++tile) {
            f8 u[PARTS];
            row_sums(entries(tile), u);
            for (long part = 0; part < PARTS; ++part) {
                u[part] = a.update(tile * ROWS + part * 8, u[part]);
                store(&a.scaling[tile * ROWS + part * 8], u[part]);
            }
            add_columns(tile, u);
        }
        for (long j = 0; j < b.count; j += 8) store(&b.scaling[j], b.update(j, column_sums8(j)));
    }

    // Logarithms of the scalings, 0 where empty, and what they make of the potentials.
    static void read_scalings(Side &side, std::vector<double> &potentials) {
        potentials.resize(side.count);
        for (long i = 0; i < side.count; i += 8) {
            const f8 logs = log8(max8(load(&side.scaling[i]), all(TINY)));
            store(&side.log_scaling[i], side.live8(i) > 0.0f ? logs : all(0.0f));
        }
        for (long i = 0; i < side.count; ++i) potentials[i] = side.absorbed[i] + side.log_scaling[i];
    }

    // Remove the translation and find `error`. Returns the largest logarithm of a scaling; where floats hold it, the
    // potentials are brought up to date.
    double look() {
        read_scalings(a, new_f), read_scalings(b, new_g);
        const double shift = translation(a, new_f, b, new_g);
        const float along = (float)((a.power - 1) * shift), by = (float)shift;
        f8 change = {}, scalings = {};
        for (long tile = 0; tile < tiles; ++tile) {
            f8 sum[PARTS];
            row_sums(entries(tile), sum);
            for (long part = 0; part < PARTS; ++part) {
                const long i = tile * ROWS + part * 8;
                const f8 log_u = load(&a.log_scaling[i]), next = max8(a.update(i, sum[part]), all(TINY));
                const f8 on = a.live8(i);
                change = max8(change, on > 0.0f ? abs8(log8(next) - log_u + along) : all(0.0f));
                scalings = max8(scalings, on > 0.0f ? abs8(log_u + by) : all(0.0f));
            }
        }
        for (long j = 0; j < b.count; j += 8) {
            const f8 log_v = load(&b.log_scaling[j]);
            scalings = max8(scalings, b.live8(j) > 0.0f ? abs8(log_v - by) : all(0.0f));
        }
        const double most = largest8(scalings);
        if (!(most < LIMIT)) return most;
        error = std::max((double)largest8(change), std::fabs((1 - b.power) * shift));
        if (shift != 0) {
            const float up = (float)std::exp(shift), down = (float)std::exp(-shift);
            for (long i = 0; i < a.count; ++i) a.scaling[i] *= up, new_f[i] += shift;
            for (long j = 0; j < b.count; ++j) b.scaling[j] *= down, new_g[j] -= shift;
        }
        a.potential.swap(new_f), b.potential.swap(new_g);
        return most;
    }

    // Repeat the last iterations, from the potentials of the last check, by logsumexp: slow, and safe for any cost.
    void rescue(long steps) {
        for (long number = 0; number < steps; ++number) {
            std::fill(peaks.begin(), peaks.end(), every((T)DEAD));
            for (long tile = 0; tile < tiles; ++tile)
                for (long r = 0; r < ROWS; r += 8) {
                    const T *from = exponent(tile) + r;
                    const long i = tile * ROWS + r;
                    V peak = every((T)DEAD);
                    f8 sum = {};
                    for (long j = 0; j < columns; ++j) {
                        const V x = vector(from + j * ROWS) + (T)b.potential[j];
                        peak = x > peak ? x : peak;
                    }
                    for (long j = 0; j < columns; ++j)
                        sum += exp8(narrow(vector(from + j * ROWS) + (T)b.potential[j] - peak));
                    const f8 log_sum = log8(max8(sum, all(TINY)));
                    for (int lane = 0; lane < 8; ++lane)
                        if (a.live(i + lane))
                            a.potential[i + lane] = a.updated(i + lane, -((double)peak[lane] + log_sum[lane]));
                    const V f = converted(&a.potential[i]);
                    for (long j = 0; j < columns; ++j) {
                        const V x = vector(from + j * ROWS) + f;
                        peaks[j] = x > peaks[j] ? x : peaks[j];
                    }
                }
            clear_columns();
            for (long j = 0; j < columns; ++j) peaks[j] = every(largest(peaks[j]));
            for (long tile = 0; tile < tiles; ++tile)
                for (long r = 0; r < ROWS; r += 8) {
                    const V f = converted(&a.potential[tile * ROWS + r]);
                    for (long j = 0; j < columns; ++j) {
                        const V x = vector(exponent(tile) + j * ROWS + r) + f - peaks[j];
                        column_sums[j] += sum8(exp8(narrow(x)));
                    }
                }
            for (long j = 0; j < columns; ++j)
                if (b.live(j)) b.potential[j] = b.updated(j, -((double)peaks[j][0] + std::log(column_sums[j])));
        }
        const double shift = translation(a, a.potential, b, b.potential);
        for (auto &value : a.potential) value += shift;
        for (auto &value : b.potential) value -= shift;
        restart();
        clear_columns();
        f8 change = {};
        for (long tile = 0; tile < tiles; ++tile) {
            f8 sum[PARTS], u[PARTS];
            row_sums(entries(tile), sum);
            for (long part = 0; part < PARTS; ++part) {
                const long i = tile * ROWS + part * 8;
                u[part] = load(&a.scaling[i]);
                const f8 next = log8(max8(a.update(i, sum[part]), all(TINY)));
                change = max8(change, u[part] > 0.0f ? abs8(next) : all(0.0f));
            }
            add_columns(tile, u);
        }
        for (long j = 0; j < b.count; j += 8) {
            const f8 next = log8(max8(b.update(j, column_sums8(j)), all(TINY)));
            change = max8(change, load(&b.scaling[j]) > 0.0f ? abs8(next) : all(0.0f));
        }
        error = largest8(change);
    }

    // Maximise the semi-dual from the columns' potentials; see _Problem.newton_steps in sinkhorn.py.
    long newton(long iteration, const Options &options) {
        double radius = 4, value = dual();
        std::vector<double> sinkhorn(columns), before(columns);
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
        double most = 0;
        for (long j = 0; j < columns; ++j) {
            if (!b.live(j)) continue;
            const double log_v = b.potential[j] - b.absorbed[j];
            b.scaling[j] = (float)std::exp(log_v);
            most = std::max(most, std::fabs(log_v));
        }
        if (!(most < LIMIT)) return dual_by_logs();
        clear_columns();
        double mass = 0;
        f8 largest = {};
        for (long tile = 0; tile < tiles; ++tile) {
            f8 sum[PARTS], u[PARTS];
            row_sums(entries(tile), sum);
            for (long part = 0; part < PARTS; ++part) {
                const long i = tile * ROWS + part * 8;
                u[part] = a.update(i, sum[part]);
                const f8 log_u = log8(max8(u[part], all(TINY))), row = u[part] * sum[part];
                largest = max8(largest, a.live8(i) > 0.0f ? abs8(log_u) : all(0.0f));
                store(&a.scaling[i], u[part]), store(&a.log_scaling[i], log_u), store(&row_mass[i], row);
                mass += sum8(row);
            }
            add_columns(tile, u);
        }
        if (!(largest8(largest) < LIMIT)) return dual_by_logs();
        for (long i = 0; i < a.count; ++i) a.potential[i] = a.absorbed[i] + a.log_scaling[i];
        for (long j = 0; j < columns; ++j) column_sums[j] = std::max(column_sums[j] * b.scaling[j], (double)TINY);
        return a.reward() + b.reward() - mass;
    }

    // The same by logsumexp; `kernel` becomes the plan.
    double dual_by_logs() {
        clear_columns();
        double mass = 0;
        for (long tile = 0; tile < tiles; ++tile) {
            f8 ones[PARTS];
            for (long part = 0; part < PARTS; ++part) {
                const long r = part * 8, i = tile * ROWS + r;
                const T *from = exponent(tile) + r;
                float *to = entries(tile) + r;
                V peak = every((T)DEAD);
                for (long j = 0; j < columns; ++j) {
                    const V x = vector(from + j * ROWS) + (T)b.potential[j];
                    peak = x > peak ? x : peak;
                }
                f8 total = {};
                for (long j = 0; j < columns; ++j) {
                    const f8 x = exp8(narrow(vector(from + j * ROWS) + (T)b.potential[j] - peak));
                    store(to + j * ROWS, x);
                    total += x;
                }
                const f8 log_total = log8(max8(total, all(TINY)));
                f8 row = {};
                for (int lane = 0; lane < 8; ++lane) {
                    if (!a.live(i + lane)) continue;
                    const double log_sum = (double)peak[lane] + log_total[lane];
                    a.potential[i + lane] = a.updated(i + lane, -log_sum);
                    row[lane] = a.power == 1 ? a.mass[i + lane] : (float)std::exp(a.potential[i + lane] + log_sum);
                }
                mass += sum8(row);
                const f8 scale = row / max8(total, all(TINY));
                for (long j = 0; j < columns; ++j) store(to + j * ROWS, load(to + j * ROWS) * scale);
                store(&row_mass[i], row);
                ones[part] = all(1.0f);
            }
            add_columns(tile, ones);
        }
        // Of a column that all rows avoid, less than floats hold: an upper bound, so that updates fall short.
        for (auto &sum : column_sums) sum = std::max(sum, (double)TINY);
        a.restart(), b.restart();
        return a.reward() + b.reward() - mass;
    }

    // Add the products of a tile's column with some columns.
    template <long COUNT>
    static void add_products(const float *x, const float *y, f8 *sums) {
        f8 odd[COUNT] = {};
        for (long r = 0; r < ROWS; r += 16)
            for (long l = 0; l < COUNT; ++l) {
                sums[l] += load(x + r) * load(y + l * ROWS + r);
                odd[l] += load(x + r + 8) * load(y + l * ROWS + r + 8);
            }
        for (long l = 0; l < COUNT; ++l) sums[l] += odd[l];
    }

    // Newton's step, to `gradient`.
    void newton_step() {
        const long n = columns;
        hessian.assign(n * n, 0.0), gradient.assign(n, 0.0);
        const float share = a.power == 1 ? 1.0f : (float)a.power;
        weights.resize(a.count), weighted.resize(CHUNK * ROWS);
        for (long i = 0; i < a.count; i += 8) {
            const f8 row = load(&row_mass[i]), u = load(&a.scaling[i]);
            store(&weights[i], row > 0.0f ? share * u * u / row : all(0.0f));
        }
        for (long first = 0; first < tiles; first += CHUNK) {
            const long last = std::min(first + CHUNK, tiles);
            for (long j = 0; j < n; ++j) {
                for (long tile = first; tile < last; ++tile)
                    for (long r = 0; r < ROWS; r += 8)
                        store(&weighted[(tile - first) * ROWS + r],
                              load(entries(tile) + j * ROWS + r) * load(&weights[tile * ROWS + r]));
                for (long k = j; k < n; k += 4) {  // four at a time, as each needs the weighted column
                    f8 sums[4] = {};
                    const long count = std::min(4L, n - k);
                    for (long tile = first; tile < last; ++tile) {
                        const float *x = &weighted[(tile - first) * ROWS], *y = entries(tile) + k * ROWS;
                        if (count == 4)
                            add_products<4>(x, y, sums);
                        else
                            for (long l = 0; l < count; ++l) add_products<1>(x, y + l * ROWS, sums + l);
                    }
                    for (long l = 0; l < count; ++l)
                        hessian[j * n + k + l] -= (double)sum8(sums[l]) * b.scaling[j] * b.scaling[k + l];
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

    // The potentials, -inf where a side is empty.
    void write_potentials(double *f, double *g) const {
        std::fill(g, g + width, -INF);
        for (long i = 0; i < rows; i += 8) {
            const f8 logs = log8(max8(load(&a.scaling[i]), all(TINY)));
            for (long r = i; r < std::min(i + 8, rows); ++r) f[r] = a.live(r) ? a.absorbed[r] + logs[r - i] : -INF;
        }
        for (long j = 0; j < columns; ++j)
            if (b.live(j)) g[places[j]] = b.absorbed[j] + std::log((double)b.scaling[j]);
    }

    // The kernel, scaled by its scalings and `scale`.
    void write(float *plan, float scale) {
        for (long i = 0; i < rows; i += 8) {
            const float *from = entries(i / ROWS) + i % ROWS;
            const f8 u = scale * load(&a.scaling[i]);
            const long last = std::min(i + 8, rows);
            if (columns < width) std::fill(plan + i * width, plan + last * width, 0.0f);
            for (long j = 0; j < columns; j += 8) {
                const long count = std::min(columns - j, 8L), begin = neighbours(j, count);
                f8 block[8] = {};
                for (long k = 0; k < count; ++k) block[k] = u * load(from + (j + k) * ROWS) * b.scaling[j + k];
                transpose8(block);
                for (long r = 0; r < last - i; ++r) {
                    float *to = plan + (i + r) * width;
                    if (begin) store(to + places[j], lanes8() < (int32_t)begin ? block[r] : all(0.0f));
                    for (long k = begin; k < count; ++k) to[places[j + k]] = block[r][k];
                }
            }
        }
    }
};

// Largest absolute value; NaN or inf where there is one.
float largest_of(const float *values, long count) {
    f8 most = {}, fault = {};  // 0 as long as all are finite
    long i = 0;
    for (; i + 8 <= count; i += 8) {
        const f8 x = load(values + i);
        most = max8(most, abs8(x)), fault += 0.0f * x;
    }
    float largest = largest8(most) + sum8(fault);
    for (; i < count; ++i) largest = std::max(largest, std::fabs(values[i])) + 0.0f * values[i];
    return largest;
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
