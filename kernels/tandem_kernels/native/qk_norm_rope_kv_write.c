/* Norms (where there are weights) and rotates each query and key head, and writes keys and values into the pages.
 *
 * `qkv` holds each token's heads [q heads, kv heads, kv heads] of head_dim; queries are rotated in place. */
#include "paged.h"
#include "rms_norm.h"

INLINE void rotate(const element *x, const element *weight, float eps, const float *cos, const float *sin, element *to,
                   int64_t head_dim) {
  int64_t half = head_dim / 2;
  lanes scale = splat(weight ? inverse_rms(x, head_dim, eps) : 1.0f);
  for (int64_t i = 0; i < half; i += LANES) {
    int64_t count = half - i < LANES ? half - i : LANES;
    lanes a = load_part(x + i, count), b = load_part(x + half + i, count);
    if (weight) {
      a *= scale * load_part(weight + i, count);
      b *= scale * load_part(weight + half + i, count);
    }
    lanes c = {0}, s = {0};
    memcpy(&c, cos + i, (size_t)count * sizeof(float));
    memcpy(&s, sin + i, (size_t)count * sizeof(float));
    store_part(to + i, a * c - b * s, count);
    store_part(to + half + i, b * c + a * s, count);
  }
}

void qk_norm_rope_kv_write(const struct cache *c, const struct step *step, int64_t layer, element *qkv,
                           const element *q_weight, const element *k_weight, float eps) {
  int64_t heads = step->q_heads + 2 * c->kv_heads, half = c->head_dim / 2;
#pragma omp parallel for schedule(static) if (step->tokens * heads * c->head_dim > 1 << 13)
  for (int64_t token = 0; token < step->tokens; token++) {
    int64_t s = 0; /* spans are in the order of their tokens */
    for (int64_t high = step->num_spans - 1; s < high;) {
      int64_t middle = (s + high + 1) / 2;
      if (step->spans[middle].first <= token) s = middle;
      else high = middle - 1;
    }
    const struct span *span = &step->spans[s];
    int64_t position = span->position + token - span->first;
    const float *cos = step->cos + token * half, *sin = step->sin + token * half;
    element *row = qkv + token * heads * c->head_dim;
    for (int64_t h = 0; h < step->q_heads; h++, row += c->head_dim)
      rotate(row, q_weight, eps, cos, sin, row, c->head_dim);
    for (int64_t h = 0; h < c->kv_heads; h++, row += c->head_dim)
      rotate(row, k_weight, eps, cos, sin, cache_row(c, layer, h, 0, span->pages, position), c->head_dim);
    for (int64_t h = 0; h < c->kv_heads; h++, row += c->head_dim)
      memcpy(cache_row(c, layer, h, 1, span->pages, position), row, (size_t)c->head_dim * sizeof(element));
  }
}
