// Vectors of eight numbers in the GNU extension that gcc and clang share, and exp and log of them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX__
#include <immintrin.h>
#endif

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));
typedef int32_t i8 __attribute__((vector_size(32)));

static inline f8 all(float x) { return f8{x, x, x, x, x, x, x, x}; }

static inline f8 load(const float *from) {
    f8 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float *to, f8 x) { std::memcpy(to, &x, sizeof x); }

static inline i8 lanes8() { return i8{0, 1, 2, 3, 4, 5, 6, 7}; }

static inline f8 min8(f8 x, f8 y) { return x < y ? x : y; }
static inline f8 max8(f8 x, f8 y) { return x > y ? x : y; }
static inline f8 abs8(f8 x) { return (f8)((i8)x & 0x7fffffff); }

// A row of numbers as whole vectors, and a last one that `filler` fills up: calls what(x, place, count).
template <class What>
__attribute__((always_inline)) static inline void each8(const float *from, int64_t count, float filler, What what) {
    int64_t place = 0;
    for (; place + 8 <= count; place += 8) what(load(from + place), place, 8);
    if (place == count) return;
    f8 rest = all(filler);
#ifdef __AVX__
    const i8 on = lanes8() < (int32_t)(count - place);
    rest = on ? (f8)_mm256_maskload_ps(from + place, (__m256i)on) : rest;
#else
    for (int64_t k = place; k < count; ++k) rest[k - place] = from[k];
#endif
    what(rest, place, count - place);
}

// Store the first numbers.
static inline void store(float *to, f8 x, int64_t count) {
    if (count == 8) return store(to, x);
#ifdef __AVX__
    _mm256_maskstore_ps(to, (__m256i)(lanes8() < (int32_t)count), (__m256)x);
#else
    for (int64_t k = 0; k < count; ++k) to[k] = x[k];
#endif
}

#ifdef __clang__
#define SHUFFLE2(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE2(x, y, ...) __builtin_shuffle(x, y, i8{__VA_ARGS__})
#endif

// Rows become columns.
__attribute__((always_inline)) static inline void transpose8(f8 (&m)[8]) {
    f8 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = SHUFFLE2(m[i], m[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = SHUFFLE2(m[i], m[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            m[i + k] = SHUFFLE2(t[i + k], t[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            m[i + k + 2] = SHUFFLE2(t[i + k], t[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int k = 0; k < 4; ++k) {
        t[k] = SHUFFLE2(m[k], m[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        t[k + 4] = SHUFFLE2(m[k], m[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 8; ++i) m[i] = t[i];
}

static inline float sum8(f8 x) {
    f4 half[2];
    std::memcpy(half, &x, sizeof x);
    half[0] += half[1];
    return (half[0][0] + half[0][2]) + (half[0][1] + half[0][3]);
}

static inline float largest8(f8 x) {
    f4 half[2];
    std::memcpy(half, &x, sizeof x);
    const f4 most = half[0] > half[1] ? half[0] : half[1];
    const float even = most[0] > most[2] ? most[0] : most[2], odd = most[1] > most[3] ? most[1] : most[3];
    return even > odd ? even : odd;
}

// exp of any number to about two units in the last place: 0 below -87.3, what lies above 88 counts as 88, and NaN stays
// NaN. Coefficients: Cephes.
static inline f8 exp8(f8 any) {
    const f8 zero = {}, x = any > 88.0f ? all(88.0f) : any;
    const f8 rounded = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: a whole number in the last bits
    const f8 n = rounded - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return any < -87.3f ? zero : p * (f8)(((i8)rounded + 127) << 23);
}

// Whether a sum of exponentials is precise: neither did large numbers count as 88, nor were all too small. Not NaN.
static inline bool is_moderate(float sum) { return sum > 3e-4f && sum < 3e3f; }

// log of positive normal numbers to about one unit in the last place. Coefficients: Cephes.
static inline f8 log8(f8 x) {
    const i8 shifted = (i8)x - 0x3f3504f3;  // sqrt(1/2)
    const f8 e = __builtin_convertvector(shifted >> 23, f8);
    const f8 m = (f8)((i8)x - (shifted & (int32_t)0xff800000)) - 1.0f;
    const f8 square = m * m;
    f8 p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return e * 0.693359375f + (m + (p * m * square - e * 2.12194440e-4f - square * 0.5f));
}

// artanh of 0 to 1/3, to about two units in the last place. Coefficients: Chebyshev fit of artanh(z) / z in z^2, whose
// relative error is 4e-9.
static inline f8 atanh8(f8 z) {
    const f8 square = z * z;
    f8 p = square * 1.408732863e-1f + 1.398070942e-1f;
    p = p * square + 2.001242686e-1f;
    p = p * square + 3.333315797e-1f;
    return z + z * square * p;
}
