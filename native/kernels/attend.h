// Attention of a block of rows over the pages they share and the pages they do not.
//
// Per query (a row and a head), in this order whatever else is in the block: positions in ascending
// order are summed page by page in spans of 256 of the absolute grid, each span from zero with its
// running maximum m, weight l (16 lanes) and output o; finished spans are merged in ascending order
// by `Queries::merge`. Spans of one query could so be computed by several threads without a change
// of bits.
//
// After "FlashAttention" (Dao et al., 2022, section 3.1) for the running softmax, and
// "ChunkAttention" (Ye et al., 2024, section 3.2) for meeting shared keys with all their queries
// at once.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

// The state of the queries of one block, structure of arrays: n = rows * heads per kv head.
struct Queries {
  int64_t dim, dim_padded;
  float *q;              // [n][dim], times the scale
  float *o, *total_o;    // [n][dim_padded]
  float *l, *p;          // [n][16]
  float *m, *total_m, *total_l;  // [n]
  int32_t* span;         // [n] index of the span being summed; -1: none yet

  static int64_t floats(int64_t n, int64_t dim, int64_t dim_padded) {
    return n * (dim + 2 * dim_padded + 2 * kLanes + 4) + 6 * kLanes;
  }

  Queries(float* scratch, int64_t n, int64_t dim, int64_t dim_padded)
      : dim(dim), dim_padded(dim_padded) {
    const auto take = [&](int64_t count) {
      float* taken = scratch;
      scratch += (count + kLanes - 1) / kLanes * kLanes;
      return taken;
    };
    o = take(n * dim_padded), total_o = take(n * dim_padded);
    l = take(n * kLanes), p = take(n * kLanes);
    q = take(n * dim), m = take(n), total_m = take(n), total_l = take(n);
    span = (int32_t*)take(n);
    for (int64_t i = 0; i < n; ++i) {
      span[i] = -1;
      total_m[i] = -__builtin_inff();
      total_l[i] = 0.0f;
    }
    memset(total_o, 0, n * dim_padded * sizeof(float));
  }

  void begin_span(int64_t i, int32_t index) {
    if (span[i] == index) return;
    if (span[i] >= 0) merge(i);
    span[i] = index;
    m[i] = -__builtin_inff();
    store(l + i * kLanes, splat(0.0f));
    memset(o + i * dim_padded, 0, dim_padded * sizeof(float));
  }

  // Fold the finished span into the total. The only place where spans meet.
  void merge(int64_t i) {
    const bool grew = m[i] > total_m[i];
    const float top = grew ? m[i] : total_m[i];
    const float keep = exp(total_m[i] - top), take = exp(m[i] - top);
    total_m[i] = top;
    total_l[i] = total_l[i] * keep + sum(load(l + i * kLanes)) * take;
    for (int64_t d = i * dim_padded; d < (i + 1) * dim_padded; d += kLanes)
      store(total_o + d, fma(load(o + d), splat(take), load(total_o + d) * splat(keep)));
  }

  // Turn the scores p of slots [low, end) into weights under the running maximum.
  void weigh(int64_t i, int low, int end) {
    const F32 hidden = splat(-__builtin_inff());
    const F32 scores = keep_range(load(p + i * kLanes), low, end, hidden);
    const float top = maximum(scores);
    if (top > m[i]) {
      const F32 shrink = splat(exp(m[i] - top));
      store(l + i * kLanes, load(l + i * kLanes) * shrink);
      for (int64_t d = i * dim_padded; d < (i + 1) * dim_padded; d += kLanes)
        store(o + d, load(o + d) * shrink);
      m[i] = top;
    }
    const F32 weights = exp(scores - splat(m[i]));
    store(l + i * kLanes, load(l + i * kLanes) + weights);
    store(p + i * kLanes, weights);
  }

  // p = q · keys for queries i to i + R - 1.
  template <int R>
  void score(int64_t i, const float* keys) {
    F32 sums[R];
    for (int r = 0; r < R; ++r) sums[r] = splat(0.0f);
    const float* x = q + i * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const F32 key = load(keys + d * kSlots);
      for (int r = 0; r < R; ++r) sums[r] = fma(splat(x[r * dim + d]), key, sums[r]);
    }
    for (int r = 0; r < R; ++r) store(p + (i + r) * kLanes, sums[r]);
  }

  // o += p · values, slot by slot. Slots outside [low, end) are not read: they may hold anything.
  template <int R>
  void gather(int64_t i, const float* values, int low, int end) {
    for (int64_t d = 0; d < dim_padded; d += kLanes) {
      F32 sums[R];
      for (int r = 0; r < R; ++r) sums[r] = load(o + (i + r) * dim_padded + d);
      for (int slot = low; slot < end; ++slot) {
        const F32 value = load(values + slot * dim_padded + d);
        for (int r = 0; r < R; ++r)
          sums[r] = fma(splat(p[(i + r) * kLanes + slot]), value, sums[r]);
      }
      for (int r = 0; r < R; ++r) store(o + (i + r) * dim_padded + d, sums[r]);
    }
  }

  template <int R>
  int meet(int64_t i, const float* keys, const float* values, int low, int end) {
    score<R>(i, keys);
    for (int r = 0; r < R; ++r) weigh(i + r, low, end);
    gather<R>(i, values, low, end);
    return R;
  }

  // Queries [i, i_end) meet one page, of which they all see slots [low, end).
  void meet_page(int64_t i, int64_t i_end, const float* keys, const float* values, int64_t grid,
                 int low, int end) {
    for (int64_t j = i; j < i_end; ++j) begin_span(j, (int32_t)(grid * kSlots / kSpan));
    while (i < i_end) {  // as many at once as registers allow, and no lonely rests
      const int64_t n = i_end - i;
      if (n == 4 || n >= 7) i += meet<4>(i, keys, values, low, end);
      else if (n >= 3) i += meet<3>(i, keys, values, low, end);
      else if (n == 2) i += meet<2>(i, keys, values, low, end);
      else i += meet<1>(i, keys, values, low, end);
    }
  }

  void finish(int64_t i, float* out) {
    merge(i);
    const F32 inverse = splat(1.0f / total_l[i]);
    for (int64_t d = 0; d < dim; d += kLanes)
      store_first(out + d, load(total_o + i * dim_padded + d) * inverse, dim - d);
  }
};

inline int64_t attend_scratch(const AttendJob& job, int64_t queries) {
  return Queries::floats(queries, job.dim, job.dim_padded);
}

// The slots of page `grid` that a row at `position` sees.
struct Visible { int low, end; };

inline Visible visible(int64_t position, int64_t window, int64_t grid) {
  const int64_t first = window && position >= window ? position - window + 1 : 0;
  const int64_t low = first - grid * kSlots, end = position + 1 - grid * kSlots;
  return {(int)(low < 0 ? 0 : low > kSlots ? kSlots : low),
          (int)(end < 0 ? 0 : end > kSlots ? kSlots : end)};
}

inline void attend(const AttendJob& job, int64_t kv_head, int64_t row, int64_t row_end,
                   float* scratch) {
  const int64_t group = job.heads / job.kv_heads, dim = job.dim;
  Queries queries(scratch, (row_end - row) * group, dim, job.dim_padded);
  for (int64_t r = row; r < row_end; ++r) {
    const float* q = job.q + (r * job.heads + kv_head * group) * dim;
    float* scaled = queries.q + (r - row) * group * dim;
    for (int64_t d = 0; d < group * dim; ++d) scaled[d] = q[d] * job.scale;
  }
  for (const Work* work = job.works; work < job.works + job.work_count; ++work) {
    const int64_t begin = work->row_begin > row ? work->row_begin : row;
    const int64_t end = work->row_end < row_end ? work->row_end : row_end;
    for (int64_t c = 0; begin < end && c < work->count; ++c) {
      const int64_t grid = work->grid + c;
      const float* page = job.pages + work->pages[c] * job.page_stride;
      const float* keys = page + kv_head * dim * kSlots;
      const float* values =
          page + (job.kv_heads * dim + kv_head * job.dim_padded) * kSlots;
      for (int64_t r = begin; r < end;) {  // neighbours that see the same slots go together
        const Visible seen = visible(job.positions[r], job.window, grid);
        int64_t next = r + 1;
        for (; next < end; ++next) {
          const Visible other = visible(job.positions[next], job.window, grid);
          if (other.low != seen.low || other.end != seen.end) break;
        }
        if (seen.low < seen.end)
          queries.meet_page((r - row) * group, (next - row) * group, keys, values, grid, seen.low,
                            seen.end);
        r = next;
      }
    }
  }
  for (int64_t r = row; r < row_end; ++r)
    for (int64_t h = 0; h < group; ++h)
      queries.finish((r - row) * group + h,
                     job.out + (r * job.heads + kv_head * group + h) * dim);
}

}  // namespace anabranch::ANABRANCH_ISA
