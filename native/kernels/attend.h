// Attention of rows over the pages they share and the pages they do not.
//
// Positions are cut into spans of 256 of the absolute grid. Per query (a row and a head) a span is
// summed from zero: all its scores, their maximum m, weights 2^(score - m), their sum l, and the
// output o, page by page in ascending order. `merge` then adds a row's spans up in ascending order.
// So the bits of a row depend on what it sees and on nothing else: not on the rows, blocks or
// threads that the spans were computed with.
//
// However many branches share a key, a pass fetches it from memory once: a page that they share is
// one page of one `Work`, and `Backend::attend_rows` lets all blocks of rows meet a span of one
// kv_head before the next, so that from the second block on it comes from cache. Inside a block it
// is loaded once per tile of queries. (Rows whose sums would exceed `kSumsBytes` go in rounds, and
// read once per round.)
//
// After "FlashAttention" (Dao et al., 2022, section 3.1) for softmax in parts, "Flash-Decoding"
// (Dao et al., 2023) for parts on several threads, and "ChunkAttention" (Ye et al., 2024,
// section 3.2) for meeting shared keys with all their queries at once.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

constexpr int64_t kScores = kSpan + kLanes;  // of a query; the rest keeps rows off the same sets

// Slots of a span, counted from its first.
struct Slots { int32_t low, end; };

// What a row at `position` sees of the span that begins at `base`.
inline Slots visible(int64_t position, int64_t window, int64_t base) {
  const auto inside = [](int64_t slot) {
    return (int32_t)(slot < 0 ? 0 : slot > kSpan ? kSpan : slot);
  };
  const int64_t low = window && position >= window ? position - window + 1 : 0;
  return {inside(low - base), inside(position + 1 - base)};
}

// Neighbouring queries that go through a page together. `any`: what some of them sees, `all`: what
// all of them see, empty or not.
struct Tile {
  int32_t query, count;
  Slots any, all;
};

// Where the sums of all spans of a round of rows lie: [span][kv_head][row][head of the kv_head].
struct Sums {
  int64_t stride, dim_padded;  // queries of a span
  float *o, *m, *l;

  explicit Sums(const AttendJob& job) {
    stride = (job.row_end - job.row) * job.heads;
    dim_padded = job.dim_padded;
    o = job.sums;
    m = o + (job.span_end - job.span) * stride * dim_padded;
    l = m + (job.span_end - job.span) * stride;
  }
};

// The queries of rows [row, row_end) and one kv_head, and one span.
template <class T>
struct Block {
  const AttendJob& job;
  int64_t span, kv_head, row, group, n;
  float *q, *p;      // [n][dim] times the scale, [n][kScores]
  float *o, *m, *l;  // [n][dim_padded], [n], [n]: in the job's sums
  Slots* seen;       // [n]
  Tile* tiles;       // of the rows of one work

  static int64_t floats(const AttendJob& job, int64_t n) {
    return n * (job.dim + kScores) + n * (int64_t)(sizeof(Slots) + sizeof(Tile)) / 4;
  }

  Block(const AttendJob& job, int64_t span, int64_t kv_head, int64_t row, int64_t row_end,
        float* scratch)
      : job(job), span(span), kv_head(kv_head), row(row), group(job.heads / job.kv_heads),
        n((row_end - row) * group) {
    p = scratch, q = p + n * kScores;
    seen = (Slots*)(q + n * job.dim);
    tiles = (Tile*)(seen + n);
    const Sums sums(job);
    const int64_t first = (span - job.span) * sums.stride +
                          (kv_head * (job.row_end - job.row) + row - job.row) * group;
    o = sums.o + first * sums.dim_padded, m = sums.m + first, l = sums.l + first;
  }

  // Whether any query sees anything of the span.
  bool look() {
    bool any = false;
    for (int64_t i = 0; i < n; ++i) {
      seen[i] = i % group ? seen[i - 1]
                          : visible(job.positions[row + i / group], job.window, span * kSpan);
      any |= seen[i].low < seen[i].end;
    }
    return any;
  }

  void take_queries() {
    const F32 scale = splat(job.scale * 0x1.715476p+0f);  // weights are powers of 2, not of e
    const int64_t count = group * job.dim;
    for (int64_t r = 0; r < n / group; ++r) {
      const float* from = job.q + ((row + r) * job.heads + kv_head * group) * job.dim;
      for (int64_t d = 0; d < count; d += kLanes)
        store_first(q + r * count + d, load_first(from + d, count - d) * scale, count - d);
    }
  }

  // Tiles of queries [i, end): full ones, and no lonely rests.
  int64_t make_tiles(int64_t i, int64_t end) {
    int64_t made = 0;
    while (i < end) {
      const int64_t rest = end - i;
      const int64_t count = rest <= kQueryTile       ? rest
                            : rest < 2 * kQueryTile ? (rest + 1) / 2
                                                    : kQueryTile;
      Tile tile = {(int32_t)i, (int32_t)count, seen[i], seen[i]};
      for (; ++i, --tile.count;) {
        const Slots s = seen[i];
        if (s.low < tile.any.low) tile.any.low = s.low;
        if (s.end > tile.any.end) tile.any.end = s.end;
        if (s.low > tile.all.low) tile.all.low = s.low;
        if (s.end < tile.all.end) tile.all.end = s.end;
      }
      tile.count = (int32_t)count;
      tiles[made++] = tile;
    }
    return made;
  }

  // Call `meet(tile, page, next, slot)` for all pages of the span and the tiles that see them:
  // where the kv_head's part of the page begins (after `offset`), and that of the page to come.
  template <class F>
  void each_page(int64_t offset, F meet) {
    const T* base = (const T*)job.pages + offset;
    for (int64_t w = job.span_works[span]; w < job.span_works[span + 1]; ++w) {
      const Work& work = job.works[w];
      const int64_t begin = work.row_begin > row ? work.row_begin - row : 0;
      const int64_t end = work.row_end - row < n / group ? work.row_end - row : n / group;
      const int64_t count = make_tiles(begin * group, end * group);
      for (int64_t c = 0; count && c < work.count; ++c) {
        const T* page = base + work.pages[c] * job.page_stride;
        const T* next = base + work.pages[c + 1 < work.count ? c + 1 : c] * job.page_stride;
        const auto slot = (int32_t)((work.grid + c) * kSlots - span * kSpan);
        for (const Tile* tile = tiles; tile < tiles + count; ++tile)
          if (tile->any.low < slot + kSlots && tile->any.end > slot) meet(*tile, page, next, slot);
      }
    }
  }

  // p = q · keys for R queries from i.
  template <int R>
  void score(int64_t i, const T* keys, const T* next, int32_t slot) {
    F32 sums[R];
    for (int r = 0; r < R; ++r) sums[r] = splat(0.0f);
    const int64_t dim = job.dim;
    const float* x = q + i * dim;
    for (int64_t d = 0; d < dim; ++d) {
      __builtin_prefetch(next + d * kSlots);
      const F32 key = load(keys + d * kSlots);
      for (int r = 0; r < R; ++r) sums[r] = fma(splat(x[r * dim + d]), key, sums[r]);
    }
    for (int r = 0; r < R; ++r) store(p + (i + r) * kScores + slot, sums[r]);
  }

  // Turn a query's scores into weights. What it does not see may hold anything and counts nothing.
  void weigh(int64_t i) {
    const auto [low, end] = seen[i];
    if (low >= end) return;
    const F32 hidden = splat(-__builtin_inff());
    float* scores = p + i * kScores;
    const int32_t first = low / kLanes * kLanes, last = (end - 1) / kLanes * kLanes;
    store(scores + first, keep_range(load(scores + first), low - first, kLanes, hidden));
    store(scores + last, keep_range(load(scores + last), 0, end - last, hidden));
    F32 tops = hidden, total = splat(0.0f);
    for (int32_t s = first; s <= last; s += kLanes) tops = max(load(scores + s), tops);
    m[i] = maximum(tops);
    const F32 top = splat(m[i]);
    for (int32_t s = first; s <= last; s += kLanes) {
      const F32 weights = power_of_2(load(scores + s) - top);
      store(scores + s, weights);
      total = total + weights;
    }
    l[i] = sum(total);
  }

  // o += p · values for R queries from i and slots [low, end) of a page. No other slot is read.
  template <int R>
  void add(int64_t i, const T* values, const T* next, int32_t slot, int32_t low, int32_t end) {
    const int64_t stride = job.dim_padded;
    const float* weights = p + i * kScores + slot;
    for (int64_t d = 0; d < stride; d += kLanes) {
      F32 sums[R];
      float* out = o + i * stride + d;
      for (int r = 0; r < R; ++r) sums[r] = load(out + r * stride);
      for (int32_t s = low; s < end; ++s) {
        __builtin_prefetch(next + s * stride + d);
        const F32 value = load(values + s * stride + d);
        for (int r = 0; r < R; ++r) sums[r] = fma(splat(weights[r * kScores + s]), value, sums[r]);
      }
      for (int r = 0; r < R; ++r) store(out + r * stride, sums[r]);
    }
  }

  // Slots that all queries of a tile see go as one, those before and behind query by query.
  template <int R>
  void gather(const Tile& tile, const T* values, const T* next, int32_t slot) {
    const auto in_page = [=](int32_t s) {
      return s < slot ? 0 : s - slot < kSlots ? s - slot : (int32_t)kSlots;
    };
    int32_t low = in_page(tile.all.low), end = in_page(tile.all.end);
    const int64_t i = tile.query;
    if (low == 0 && end == kSlots) return add<R>(i, values, next, slot, 0, kSlots);
    if (low >= end) low = end = kSlots;
    for (int64_t j = i; j < i + R; ++j) {
      const int32_t last = in_page(seen[j].end);
      add<1>(j, values, next, slot, in_page(seen[j].low), last < low ? last : low);
    }
    if (low < end) add<R>(i, values, next, slot, low, end);
    for (int64_t j = i; j < i + R; ++j) {
      const int32_t first = in_page(seen[j].low);
      add<1>(j, values, next, slot, first > end ? first : end, in_page(seen[j].end));
    }
  }

  void attend() {
    if (!look()) return;
    take_queries();
    each_page(kv_head * job.dim * kSlots,
              [&](const Tile& tile, const T* keys, const T* next, int32_t slot) {
                with_count<kQueryTile>(tile.count, [&]<int R>() {
                  score<R>(tile.query, keys, next, slot);
                });
              });
    for (int64_t i = 0; i < n; ++i) weigh(i);
    memset(o, 0, n * job.dim_padded * sizeof(float));
    each_page((job.kv_heads * job.dim + kv_head * job.dim_padded) * kSlots,
              [&](const Tile& tile, const T* values, const T* next, int32_t slot) {
                with_count<kQueryTile>(tile.count,
                                       [&]<int R>() { gather<R>(tile, values, next, slot); });
              });
  }

  // f with a count in [1, Most] as a constant.
  template <int Most, class F>
  static void with_count(int32_t count, F f) {
    if constexpr (Most > 1)
      if (count < Most) return with_count<Most - 1>(count, f);
    f.template operator()<Most>();
  }
};

inline int64_t attend_scratch(const AttendJob& job, int64_t queries) {
  return Block<float>::floats(job, queries);
}

inline void attend(const AttendJob& job, int64_t span, int64_t kv_head, int64_t row,
                   int64_t row_end, float* scratch) {
  if (job.storage == Storage::bf16)
    Block<Bf16>(job, span, kv_head, row, row_end, scratch).attend();
  else
    Block<float>(job, span, kv_head, row, row_end, scratch).attend();
}

// Add up the spans of one query in ascending order; `i` is its place in each span. Leaves their
// weights where their maxima were.
inline void merge_query(const Sums& sums, int64_t first, int64_t count, int64_t i, int64_t dim,
                        float* out) {
  const float* o = sums.o + (first * sums.stride + i) * sums.dim_padded;
  float *m = sums.m + first * sums.stride + i, *l = sums.l + first * sums.stride + i;
  float top = -__builtin_inff(), total = 0.0f;
  for (int64_t s = 0; s < count; ++s)
    if (m[s * sums.stride] > top) top = m[s * sums.stride];
  for (int64_t s = 0; s < count; s += kLanes) {
    const int64_t lanes = count - s < kLanes ? count - s : kLanes;
    float weights[kLanes] = {};
    for (int64_t j = 0; j < lanes; ++j) weights[j] = m[(s + j) * sums.stride];
    store(weights, power_of_2(load(weights) - splat(top)));
    for (int64_t j = 0; j < lanes; ++j) {
      m[(s + j) * sums.stride] = weights[j];
      total += l[(s + j) * sums.stride] * weights[j];
    }
  }
  const F32 inverse = splat(1.0f / total);
  for (int64_t d = 0; d < dim; d += kLanes) {
    F32 sum = splat(0.0f);
    for (int64_t s = 0; s < count; ++s)
      sum = fma(load(o + s * sums.stride * sums.dim_padded + d), splat(m[s * sums.stride]), sum);
    store_first(out + d, sum * inverse, dim - d);
  }
}

inline void merge(const AttendJob& job, int64_t row) {
  const Sums sums(job);
  const int64_t position = job.positions[row], group = job.heads / job.kv_heads;
  const int64_t first = job.window && position >= job.window ? position - job.window + 1 : 0;
  const int64_t begin = first / kSpan - job.span, count = position / kSpan - first / kSpan + 1;
  for (int64_t h = 0; h < job.heads; ++h) {
    const int64_t i = (h / group * (job.row_end - job.row) + row - job.row) * group + h % group;
    merge_query(sums, begin, count, i, job.dim, job.out + (row * job.heads + h) * job.dim);
  }
}

}  // namespace anabranch::ANABRANCH_ISA
