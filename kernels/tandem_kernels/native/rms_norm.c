/* RMSNorm (arXiv:1910.07467): x / rms(x) * weight over rows of `size`, in fp32, rounded once. */
#include <math.h>

#include "lanes.h"
#include "rms_norm.h"

void rms_norm(const element *x, int64_t x_stride, const element *weight, element *out, int64_t rows, int64_t size,
              float eps) {
#pragma omp parallel for schedule(static) if (rows * size > 1 << 14)
  for (int64_t row = 0; row < rows; row++)
    rms_norm_row(x + row * x_stride, weight, out + row * size, size, eps);
}
