/* Paged KV of one rank, [page, kv head, layer, K|V, token in page, head_dim] (tandem_runtime.core.kv), and a step over it. */
#pragma once
#include "lanes.h"

struct cache {
  element *kv;
  int64_t kv_heads, layers, page_size, head_dim;
};

/* Queries first .. first + count - 1 of the step are consecutive positions of one sequence. */
struct span {
  int64_t first, count, position;
  const int32_t *pages;
};

struct step {
  int64_t tokens, q_heads, num_spans;
  const struct span *spans;
  const float *cos, *sin; /* [tokens, head_dim / 2] */
};

INLINE element *cache_row(const struct cache *c, int64_t layer, int64_t head, int64_t is_value, const int32_t *pages,
                          int64_t position) {
  int64_t tile = ((pages[position / c->page_size] * c->kv_heads + head) * c->layers + layer) * 2 + is_value;
  return c->kv + (tile * c->page_size + position % c->page_size) * c->head_dim;
}
