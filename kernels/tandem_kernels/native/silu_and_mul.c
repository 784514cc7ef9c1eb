/* silu(gate) * up, where each row of `gate_up` holds `size` gates, then `size` ups. */
#include "lanes.h"

INLINE lanes gated(lanes gate, lanes up) { return gate / (1.0f + exponential(-gate)) * up; }

void silu_and_mul(const element *gate_up, element *out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows * size > 1 << 13)
  for (int64_t row = 0; row < rows; row++) {
    const element *gate = gate_up + row * 2 * size, *up = gate + size;
    element *to = out + row * size;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store(to + i, gated(load(gate + i), load(up + i)));
    if (i < size) store_part(to + i, gated(load_part(gate + i, size - i), load_part(up + i, size - i)), size - i);
  }
}
