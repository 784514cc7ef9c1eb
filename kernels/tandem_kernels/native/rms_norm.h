#pragma once
#include <math.h>

#include "lanes.h"

/* 1 / rms of one row. */
INLINE float inverse_rms(const element *x, int64_t size, float eps) {
  lanes squares[2] = {{0}, {0}};
  int64_t i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES) {
    lanes a = load(x + i), b = load(x + i + LANES);
    squares[0] += a * a;
    squares[1] += b * b;
  }
  for (; i < size; i += LANES) {
    lanes a = load_part(x + i, size - i < LANES ? size - i : LANES);
    squares[0] += a * a;
  }
  return 1.0f / sqrtf(sum(squares[0] + squares[1]) / (float)size + eps);
}

INLINE void rms_norm_row(const element *x, const element *weight, element *out, int64_t size, float eps) {
  lanes scale = splat(inverse_rms(x, size, eps));
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
  if (i < size) store_part(out + i, load_part(x + i, size - i) * scale * load_part(weight + i, size - i), size - i);
}
