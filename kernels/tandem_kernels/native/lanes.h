/* Sixteen numbers at a time, in fp32, whatever the tensors' dtype is (ELEMENT: float32, bfloat16 or float16).
 *
 * Every row's arithmetic has one order, fixed by the shapes of that row alone: how many rows are computed together, and
 * on how many threads, never changes a bit of any of them. */
#pragma once
#include <stdint.h>
#include <string.h>

#define LANES 16
typedef float lanes __attribute__((vector_size(64)));
typedef uint32_t lane_bits __attribute__((vector_size(64)));
typedef int32_t lane_ints __attribute__((vector_size(64)));
typedef uint16_t half_bits __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))

INLINE lanes splat(float x) { return x - (lanes){}; }
INLINE lanes pick(lane_ints where, lanes yes, lanes no) {
  return (lanes)((where & (lane_ints)yes) | (~where & (lane_ints)no));
}

#if ELEMENT == 32
typedef float element;
INLINE lanes load(const element *from) {
  lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}
INLINE void store(element *to, lanes x) { memcpy(to, &x, sizeof x); }
#elif ELEMENT == 16
typedef _Float16 element;
typedef _Float16 halves __attribute__((vector_size(32)));
INLINE lanes load(const element *from) {
  halves x;
  memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, lanes);
}
INLINE void store(element *to, lanes x) {
  halves y = __builtin_convertvector(x, halves);
  memcpy(to, &y, sizeof y);
}
#else
typedef uint16_t element; /* bfloat16: the upper half of a float */
INLINE lanes load(const element *from) {
  half_bits x;
  memcpy(&x, from, sizeof x);
  return (lanes)(__builtin_convertvector(x, lane_bits) << 16);
}
INLINE void store(element *to, lanes x) {
  lane_bits bits = (lane_bits)x;
  lane_bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
  lane_bits nan = (lane_bits)(x != x);
  half_bits y = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), half_bits);
  memcpy(to, &y, sizeof y);
}
#endif

/* The first `count` of sixteen; the others are 0 and are not read. */
INLINE lanes load_part(const element *from, int64_t count) {
  element part[LANES] = {0};
  memcpy(part, from, (size_t)count * sizeof(element));
  return load(part);
}
INLINE void store_part(element *to, lanes x, int64_t count) {
  element part[LANES];
  store(part, x);
  memcpy(to, part, (size_t)count * sizeof(element));
}

INLINE lanes larger(lanes a, lanes b) { return pick(a > b, a, b); }
INLINE lanes added(lanes a, lanes b) { return a + b; }

/* Over all lanes, as a tree: lane i with i + 8, i + 4, i + 2, i + 1. */
#define FOLD_(x, with)                                                                                       \
  x = with(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));          \
  x = with(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));          \
  x = with(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));          \
  x = with(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));          \
  return x[0]

INLINE float sum(lanes x) { FOLD_(x, added); }
INLINE float largest(lanes x) { FOLD_(x, larger); }

/* e^x for x <= 88, 0 below -87; relative error < 2e-7 (Cody and Waite's reduction, the minimax polynomial of Cephes'
 * expf). NaN stays NaN. */
INLINE lanes exponential(lanes x) {
  lanes clamped = pick(x < splat(-87.0f), splat(-87.0f), x);
  clamped = pick(clamped > splat(88.0f), splat(88.0f), clamped);
  lanes shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the rounded integer */
  lane_ints power = (lane_ints)shifted - 0x4b400000;
  lanes n = shifted - 12582912.0f;
  lanes r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  lanes p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  lanes scaled = (lanes)((lane_ints)p + (power << 23));
  scaled = pick(x < splat(-87.0f), splat(0.0f), scaled);
  return pick(x == x, scaled, x);
}
