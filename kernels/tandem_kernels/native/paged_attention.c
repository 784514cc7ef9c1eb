/* Causal attention over paged KV (online softmax, arXiv:2205.14135), for decode rows and prefill chunks alike.
 *
 * A query meets its keys in blocks of 16 that begin at multiples of 16 tokens, one after the other, whether it is
 * computed alone, in a chunk, or after a prefix that was cached: its result is the same to the bit. */
#include <math.h>

#include "paged.h"

#define MAX_HEAD_DIM 256
#define MAX_ROWS 64
#define TOGETHER 4 /* rows that share one load of a block of keys */

#define INTERLEAVE_(a, b, first)                                                                                     \
  __builtin_shufflevector(a, b, first, first + 16, first + 1, first + 17, first + 2, first + 18, first + 3,          \
                          first + 19, first + 4, first + 20, first + 5, first + 21, first + 6, first + 22, first + 7, \
                          first + 23)

/* Four rounds of interleaving row i with row i + 8 transpose a 16 x 16 block. */
INLINE void transpose(const lanes *rows, lanes *columns) {
  lanes x[LANES], y[LANES];
  memcpy(x, rows, sizeof x);
  for (int round = 0; round < 4; round++) {
    for (int i = 0; i < 8; i++) {
      y[2 * i] = INTERLEAVE_(x[i], x[i + 8], 0);
      y[2 * i + 1] = INTERLEAVE_(x[i], x[i + 8], 8);
    }
    memcpy(x, y, sizeof x);
  }
  memcpy(columns, x, sizeof x);
}

/* Asks for a block's memory while the one before it is computed: pages lie anywhere, so the hardware cannot guess. */
INLINE void prefetch_block(const struct cache *c, int64_t layer, int64_t head, const int32_t *pages, int64_t first,
                           int64_t count) {
  int64_t bytes = c->head_dim * (int64_t)sizeof(element);
  for (int64_t t = 0; t < count; t++) {
    const char *key = (const char *)cache_row(c, layer, head, 0, pages, first + t);
    for (int64_t i = 0; i < bytes; i += 64) {
      __builtin_prefetch(key + i);
      __builtin_prefetch(key + c->page_size * bytes + i);
    }
  }
}

INLINE int64_t at_most(int64_t count, int64_t limit) { return count < limit ? count : limit; }

/* Up to sixteen tokens of one head: keys [dimension][token], values [token][dimension]. Missing tokens are not read. */
INLINE void load_block(const struct cache *c, int64_t layer, int64_t head, const int32_t *pages, int64_t first,
                       int64_t count, lanes *keys, lanes *values) {
  int64_t blocks = c->head_dim / LANES;
  lanes rows[MAX_HEAD_DIM / LANES][LANES];
  if (count < LANES) memset(rows, 0, sizeof rows);
  for (int64_t t = 0; t < count; t++) {
    const element *key = cache_row(c, layer, head, 0, pages, first + t);
    const element *value = key + c->page_size * c->head_dim;
    for (int64_t b = 0; b < blocks; b++) {
      rows[b][t] = load(key + b * LANES);
      values[t * blocks + b] = load(value + b * LANES);
    }
  }
  for (int64_t b = 0; b < blocks; b++) transpose(rows[b], keys + b * LANES);
}

/* Scores of `rows` queries against a block of keys. Two sums in turn, over even and odd dimensions, hide the latency. */
INLINE void dot(const float *queries, const lanes *keys, int64_t head_dim, lanes *out, const int rows) {
  lanes even[TOGETHER] = {{0}}, odd[TOGETHER] = {{0}};
  for (int64_t d = 0; d < head_dim; d += 2)
    for (int r = 0; r < rows; r++) {
      even[r] += queries[r * head_dim + d] * keys[d];
      odd[r] += queries[r * head_dim + d + 1] * keys[d + 1];
    }
  for (int r = 0; r < rows; r++) out[r] = even[r] + odd[r];
}

struct row {
  float largest, total; /* of the scores so far, and of e^(score - largest) */
  int64_t length;       /* how many tokens it attends to */
};

/* Takes one block of sixteen scores, of which `valid` count, into a row's running sum over values. */
INLINE void mix(struct row *row, lanes score, int64_t valid, const lanes *values, lanes *sums, const int blocks) {
  const lane_ints index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  lane_ints counts = index < (int32_t)valid;
  float highest = largest(pick(counts, score, splat(-INFINITY)));
  highest = highest > row->largest ? highest : row->largest;
  lanes weight = pick(counts, exponential(score - highest), splat(0.0f));
  /* Where nothing shrinks the factor would be exactly 1. */
  float shrink = highest == row->largest ? 1.0f : exponential(splat(row->largest - highest))[0];
  row->total = row->total * shrink + sum(weight);
  row->largest = highest;
  float weights[LANES];
  memcpy(weights, &weight, sizeof weight);
  lanes mixed[MAX_HEAD_DIM / LANES];
  for (int b = 0; b < blocks; b++) mixed[b] = sums[b] * shrink;
  for (int64_t t = 0; t < valid; t++)
    for (int b = 0; b < blocks; b++) mixed[b] += weights[t] * values[t * blocks + b];
  for (int b = 0; b < blocks; b++) sums[b] = mixed[b];
}

/* The queries first .. first + count - 1 of a span that share one kv head. */
static void attend(const struct cache *c, const struct step *step, int64_t layer, const struct span *span, int64_t head,
                   int64_t first, int64_t count, const element *qkv, element *out) {
  int64_t dim = c->head_dim, blocks = dim / LANES, group = step->q_heads / c->kv_heads, rows = count * group;
  int64_t token_size = (step->q_heads + 2 * c->kv_heads) * dim;
  float queries[MAX_ROWS * MAX_HEAD_DIM];
  lanes keys[MAX_HEAD_DIM], values[LANES * MAX_HEAD_DIM / LANES], sums[MAX_ROWS * MAX_HEAD_DIM / LANES];
  struct row state[MAX_ROWS] = {{0}};
  lanes scale = splat(1.0f / sqrtf((float)dim));
  for (int64_t r = 0; r < rows; r++) {
    const element *q = qkv + (span->first + first + r / group) * token_size + (head * group + r % group) * dim;
    for (int64_t b = 0; b < blocks; b++) {
      lanes x = load(q + b * LANES) * scale;
      memcpy(queries + r * dim + b * LANES, &x, sizeof x);
      sums[r * blocks + b] = splat(0.0f);
    }
    state[r] = (struct row){-INFINITY, 0.0f, span->position + first + r / group + 1};
  }
  int64_t length = state[rows - 1].length;
  for (int64_t at = 0; at < length; at += LANES) {
    load_block(c, layer, head, span->pages, at, at_most(length - at, LANES), keys, values);
    if (at + LANES < length) prefetch_block(c, layer, head, span->pages, at + LANES, at_most(length - at - LANES, LANES));
    int64_t r = 0;
    while (r < rows && state[r].length <= at) r++;
    for (; r < rows; r += TOGETHER) {
      lanes score[TOGETHER];
      int64_t together = at_most(rows - r, TOGETHER);
      switch (together) {
        case 1: dot(queries + r * dim, keys, dim, score, 1); break;
        case 2: dot(queries + r * dim, keys, dim, score, 2); break;
        case 3: dot(queries + r * dim, keys, dim, score, 3); break;
        default: dot(queries + r * dim, keys, dim, score, TOGETHER);
      }
      for (int64_t i = r; i < r + together; i++) {
        int64_t valid = at_most(state[i].length - at, LANES);
        switch (blocks) {
          case 4: mix(&state[i], score[i - r], valid, values, sums + i * 4, 4); break;
          case 6: mix(&state[i], score[i - r], valid, values, sums + i * 6, 6); break;
          case 8: mix(&state[i], score[i - r], valid, values, sums + i * 8, 8); break;
          default: mix(&state[i], score[i - r], valid, values, sums + i * blocks, (int)blocks);
        }
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    element *to = out + ((span->first + first + r / group) * step->q_heads + head * group + r % group) * dim;
    for (int64_t b = 0; b < blocks; b++) store(to + b * LANES, sums[r * blocks + b] / state[r].total);
  }
}

/* qkv as `qk_norm_rope_kv_write` leaves it; out [tokens, q heads, head_dim]. */
void paged_attention(const struct cache *c, const struct step *step, int64_t layer, const element *qkv, element *out) {
  int64_t group = step->q_heads / c->kv_heads, block = group < MAX_ROWS ? MAX_ROWS / group : 1, total = 0;
  for (int64_t s = 0; s < step->num_spans; s++) total += (step->spans[s].count + block - 1) / block;
  total *= c->kv_heads;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < total; task++) {
    int64_t head = task % c->kv_heads, index = task / c->kv_heads;
    const struct span *span = step->spans;
    int64_t span_blocks = (span->count + block - 1) / block;
    while (index >= span_blocks) {
      index -= span_blocks;
      span++;
      span_blocks = (span->count + block - 1) / block;
    }
    int64_t first = (span_blocks - 1 - index) * block; /* the longest first */
    int64_t count = at_most(span->count - first, block);
    attend(c, step, layer, span, head, first, count, qkv, out);
  }
}
