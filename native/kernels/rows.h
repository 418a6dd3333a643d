// Operations on whole rows: quantize, RMS norm, rotate and store.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

// 1 / sqrt(mean(x^2) + eps): 16 running sums, folded once.
inline float inverse_rms(const float* x, int64_t n, float eps) {
  F32 squares = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 v = load_first(x + i, n - i);
    squares = fma(v, v, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps);
}

inline void norm(const float* x, int64_t n, const float* weight, float eps, bool add, float* out) {
  const F32 factor = splat(inverse_rms(x, n, eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    F32 y = load_first(x + i, n - i) * factor * load_first(weight + i, n - i);
    if (add) y = load_first(out + i, n - i) + y;
    store_first(out + i, y, n - i);
  }
}

// The two largest magnitudes of a group, the second no less than a 64th of the first: if the rest
// is rounded by the second, 14 bits hold the first.
struct Peaks { float first, second; };

inline Peaks find_peaks(F32 low, F32 high) {
  const I32 a = magnitude(low), b = magnitude(high);
  const I32 larger = max(a, b), smaller = min(a, b);
  const int32_t first = maximum(larger);
  const uint32_t places = mask_equal(larger, first);
  const bool tie = places & (places - 1);
  const int32_t second =
      tie ? first : maximum(max(replace_equal(larger, first, smaller), smaller));
  Peaks peaks;
  memcpy(&peaks.first, &first, sizeof first), memcpy(&peaks.second, &second, sizeof second);
  const float least = peaks.first / 64.0f;
  if (peaks.second < least) peaks.second = least;
  return peaks;
}

// Take the largest integer out of its group.
inline void keep_apart(I32* low, I32* high, Group* out) {
  int32_t q[kGroup], at = 0;
  store(q, *low), store(q + kLanes, *high);
  for (int i = 1; i < kGroup; ++i)
    if (__builtin_abs(q[i]) > __builtin_abs(q[at])) at = i;
  out->apart = (int16_t)q[at];
  out->apart_at = (int16_t)at;
  q[at] = 0;
  *low = load(q), *high = load(q + kLanes);
}

// q = round(x * 127 / top), scale = top / 127, where top is the largest magnitude or, if that is to
// be kept apart, the next. A group with NaN or infinity has NaN as its scale, and so have its row's
// outputs; one below 2^-100 counts as zero, lest 127 / top overflow.
inline void quantize_group(F32 low, F32 high, float first, float top, Group* out) {
  const bool finite = first < __builtin_inff(), some = top >= 0x1p-100f;
  if (!finite || !some) low = high = splat(0.0f), top = 1.0f;
  const F32 inverse = splat(127.0f / top);
  I32 low_q = round(low * inverse), high_q = round(high * inverse);
  out->apart = out->apart_at = 0;
  if (top < first) keep_apart(&low_q, &high_q, out);
  store_bytes(out->q, low_q);
  store_bytes(out->q + kLanes, high_q);
  pair_sums(low_q, out->sum[0]);
  pair_sums(high_q, out->sum[1]);
  out->scale = !finite ? __builtin_nanf("") : some ? top / 127.0f : 0.0f;
  const int all = out->sum[0][0] + out->sum[0][1] + out->sum[1][0] + out->sum[1][1] + out->apart;
  out->total = out->scale * (float)all;
}

// Rounding costs a group the square of its largest magnitude. That one is kept apart where it adds
// more than four times what a group costs on average without its largest. Measured on SmolLM2-135M:
// one group in seven, and a fifth of the divergence from float32.
constexpr float kApartCost = 4.0f;

inline void quantize(const float* x, int64_t inputs, const float* weight, float eps,
                     int64_t groups, Group* out, uint32_t* apart) {
  const F32 factor = splat(weight ? inverse_rms(x, inputs, eps) : 1.0f);
  const auto lanes = [&](int64_t i) {
    const F32 v = load_first(x + i, inputs - i);
    return weight ? v * factor * load_first(weight + i, inputs - i) : v;
  };
  float cost = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {  // out[g] holds the peaks until it is written
    const Peaks peaks = find_peaks(lanes(g * kGroup), lanes(g * kGroup + kLanes));
    out[g].scale = peaks.first, out[g].total = peaks.second;
    cost += peaks.second * peaks.second;
  }
  const float most = kApartCost * (cost / (float)groups);
  memset(apart, 0, group_blocks(groups) * sizeof *apart);
  for (int64_t g = 0; g < groups; ++g) {
    const float first = out[g].scale, second = out[g].total;
    const bool split = first * first - second * second > most;
    quantize_group(lanes(g * kGroup), lanes(g * kGroup + kLanes), first, split ? second : first,
                   out + g);
    apart[g / kGroupBlock] |= (uint32_t)(out[g].apart != 0) << g % kGroupBlock;
  }
}

// The head `x[dim]`, normed unless weight is null, its pairs (j, j + dim/2) rotated, is handed to
// `put(first dimension, lanes, count)`.
template <class Put>
inline void rotate_head(const float* x, int64_t dim, const float* weight, float eps,
                        const float* cos, const float* sin, Put put) {
  const F32 factor = splat(weight ? inverse_rms(x, dim, eps) : 1.0f);
  const int64_t pairs = dim / 2;
  for (int64_t j = 0; j < pairs; j += kLanes) {
    const int64_t count = pairs - j < kLanes ? pairs - j : kLanes;
    F32 low = load_first(x + j, count), high = load_first(x + pairs + j, count);
    if (weight) {
      low = low * factor * load_first(weight + j, count);
      high = high * factor * load_first(weight + pairs + j, count);
    }
    const F32 c = load_first(cos + j, count), s = load_first(sin + j, count);
    put(j, fma(low, c, splat(0.0f) - high * s), count);
    put(pairs + j, fma(high, c, low * s), count);
  }
}

inline void keep(float* to, float x) { *to = x; }

// To nearest, ties to even; NaN stays NaN.
inline void keep(Bf16* to, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  to->bits = (uint16_t)(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}

// A page of one layer: keys [kv_head][dim][slot], then values [kv_head][slot][dim padded to 16].
// Scores of 16 slots are then one vector, and so are 16 dimensions of a value.
template <class T>
inline void rope_store_as(const RopeJob& job, int64_t row) {
  const int64_t dim = job.dim, pairs = dim / 2;
  const float* x = job.qkv + row * (job.heads + 2 * job.kv_heads) * dim;
  const float* cos = job.cos + job.positions[row] * pairs;
  const float* sin = job.sin + job.positions[row] * pairs;
  float* q = job.q + row * job.heads * dim;
  for (int64_t h = 0; h < job.heads; ++h, x += dim)
    rotate_head(x, dim, job.q_norm, job.q_eps, cos, sin, [&](int64_t d, F32 lanes, int64_t count) {
      store_first(q + h * dim + d, lanes, count);
    });
  if (job.slots[row] < 0) return;
  T* page = (T*)job.pages + job.slots[row] / kSlots * job.page_stride;
  const int64_t slot = job.slots[row] % kSlots;
  for (int64_t h = 0; h < job.kv_heads; ++h, x += dim)
    rotate_head(x, dim, job.k_norm, job.k_eps, cos, sin, [&](int64_t d, F32 lanes, int64_t count) {
      float turned[kLanes];
      store(turned, lanes);
      T* keys = page + (h * dim + d) * kSlots + slot;
      for (int64_t i = 0; i < count; ++i) keep(keys + i * kSlots, turned[i]);
    });
  for (int64_t h = 0; h < job.kv_heads; ++h, x += dim) {
    T* values = page + (job.kv_heads * dim + h * job.dim_padded) * kSlots + slot * job.dim_padded;
    for (int64_t d = 0; d < dim; ++d) keep(values + d, x[d]);
  }
}

inline void rope_store(const RopeJob& job, int64_t row) {
  if (job.storage == Storage::bf16) rope_store_as<Bf16>(job, row);
  else rope_store_as<float>(job, row);
}

}  // namespace anabranch::ANABRANCH_ISA
