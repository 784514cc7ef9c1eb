/* y = x W^T (+ bias) (+ residual) in bfloat16, by the processor's dot product of pairs, summed in fp32.
 *
 * W [n, k] is kept in panels of 16 of its rows, [ceil(n / 16)][ceil(k / 2)][16][2], padded with zeros: the innermost
 * loop reads each panel from front to back, 64 bytes at a step. A result is one chain of sums over k in order, whatever
 * the rows beside it, the tile it falls into and the thread that computes it.
 *
 * With AMX oneDNN's product of many rows is several times faster, and few rows and many must come from the same
 * product, for the bits to be the same: there this file offers nothing. */
#include "lanes.h"

#if ELEMENT == 0 && defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <immintrin.h>
#include <omp.h>

#define TILE_ROWS 8
#define TILE_PANELS 3 /* 8 x 3 sums, a step of 3 panels and a pair of x: 28 of 32 registers */
#define BLOCK_ROWS 64 /* of x: they stay in the second-level cache while one panel after the other passes */
#define AHEAD 2048    /* bytes: the processor's own prefetcher begins anew with each panel */
#define STEP (2 * LANES)

typedef struct {
  const element *x, *weight, *bias, *residual;
  element *out;
  int64_t rows, n, k;
} product;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t panel_size(int64_t k) { return (k + 1) / 2 * STEP; }

int64_t linear_packed_size(int64_t n, int64_t k) { return (n + LANES - 1) / LANES * panel_size(k); }

/* Rows first .. first + count of W, from plain rows; `packed` begins as zeros. */
void linear_pack(const element *from, element *packed, int64_t first, int64_t count, int64_t k) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) {
    element *to = packed + (first + i) / LANES * panel_size(k) + (first + i) % LANES * 2;
    for (int64_t j = 0; j < k; j++) to[j / 2 * STEP + j % 2] = from[i * k + j];
  }
}

/* Plain rows of W again, by index: a tied embedding. */
void linear_rows(const element *packed, const int64_t *ids, element *out, int64_t count, int64_t k) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) {
    const element *from = packed + ids[i] / LANES * panel_size(k) + ids[i] % LANES * 2;
    for (int64_t j = 0; j < k; j++) out[i * k + j] = from[j / 2 * STEP + j % 2];
  }
}

INLINE void step(__m512 y[TILE_ROWS][TILE_PANELS], const element *x, int64_t row_size, int64_t left,
                 const element *weight, int64_t panel, int rows, int panels) {
  __m512bh w[TILE_PANELS];
#pragma GCC unroll 3
  for (int c = 0; c < panels; c++) {
    w[c] = (__m512bh)_mm512_loadu_si512(weight + c * panel);
    _mm_prefetch((const char *)(weight + c * panel) + AHEAD, _MM_HINT_T0);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
    int32_t pair = 0;
    memcpy(&pair, x + r * row_size, left > 1 ? 4 : 2);
    __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
    for (int c = 0; c < panels; c++) y[r][c] = _mm512_dpbf16_ps(y[r][c], a, w[c]);
  }
}

INLINE void finish(const product *p, int64_t row, int64_t column, lanes y) {
  int64_t at = row * p->n + column, count = p->n - column;
  if (count >= LANES) {
    if (p->bias) y += load(p->bias + column);
    if (p->residual) y += load(p->residual + at);
    store(p->out + at, y);
  } else {
    if (p->bias) y += load_part(p->bias + column, count);
    if (p->residual) y += load_part(p->residual + at, count);
    store_part(p->out + at, y, count);
  }
}

INLINE void tile(const product *p, int64_t row, int64_t panel, int rows, int panels) {
  int64_t size = panel_size(p->k), j = 0;
  const element *x = p->x + row * p->k, *weight = p->weight + panel * size;
  __m512 y[TILE_ROWS][TILE_PANELS];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
    for (int c = 0; c < panels; c++) y[r][c] = _mm512_setzero_ps();
  for (; j + 2 <= p->k; j += 2) step(y, x + j, p->k, 2, weight + j * LANES, size, rows, panels);
  if (j < p->k) step(y, x + j, p->k, 1, weight + j * LANES, size, rows, panels);
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
    for (int c = 0; c < panels; c++) finish(p, row + r, (panel + c) * LANES, (lanes)y[r][c]);
}

/* Each shape of tile is compiled apart, so that its sums are registers. */
#define ROWS_(n)                            \
  case n:                                   \
    if (panels == 3) tile(p, row, panel, n, 3); \
    if (panels == 2) tile(p, row, panel, n, 2); \
    if (panels == 1) tile(p, row, panel, n, 1); \
    break;

static void tile_of(const product *p, int64_t row, int64_t panel, int64_t rows, int64_t panels) {
  switch (rows) { ROWS_(1) ROWS_(2) ROWS_(3) ROWS_(4) ROWS_(5) ROWS_(6) ROWS_(7) ROWS_(8) }
}

/* Threads fetch tiles as they go: one that is slowed down by another process holds up no other. */
void linear(const element *x, const element *weight, const element *bias, const element *residual, element *out,
            int64_t rows, int64_t n, int64_t k) {
  product p = {x, weight, bias, residual, out, rows, n, k};
  int64_t panels = (n + LANES - 1) / LANES, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
  int64_t together = panels < 2 * TILE_PANELS * omp_get_max_threads() ? 1 : TILE_PANELS;
  int64_t groups = (panels + together - 1) / together;
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t group = 0; group < groups; group++) {
      int64_t end = least(rows, (block + 1) * BLOCK_ROWS), panel = group * together;
      for (int64_t row = block * BLOCK_ROWS; row < end; row += TILE_ROWS)
        tile_of(&p, row, panel, least(end - row, TILE_ROWS), least(panels - panel, together));
    }
}
#endif
