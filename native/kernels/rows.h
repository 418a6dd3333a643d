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

inline int32_t sum_bytes(const int8_t* q, int count) {
  int32_t total = 0;
  for (int i = 0; i < count; ++i) total += q[i];
  return total;
}

// q = round(x * 127 / amax), scale = amax / 127. A group with NaN or infinity has NaN as its scale,
// and so have its row's outputs; one below 2^-100 counts as zero, lest 127 / amax overflow.
inline void quantize_group(F32 low, F32 high, Group* out) {
  const int32_t top = maximum(max(magnitude(low), magnitude(high)));
  float amax, scale = 0.0f, inverse = 0.0f;
  memcpy(&amax, &top, sizeof amax);
  const bool finite = top < 0x7f800000;
  if (finite && amax >= 0x1p-100f) {
    scale = amax / 127.0f;
    inverse = 127.0f / amax;
  } else {
    low = high = splat(0.0f);
  }
  store_bytes(out->q, round(low * splat(inverse)));
  store_bytes(out->q + kLanes, round(high * splat(inverse)));
  out->sum[0] = (int16_t)sum_bytes(out->q, kLanes);
  out->sum[1] = (int16_t)sum_bytes(out->q + kLanes, kLanes);
  out->rest = 0;
  out->scale = finite ? scale : __builtin_nanf("");
  out->total = out->scale * (float)(out->sum[0] + out->sum[1]);
}

// Groups whose scale is this many times the row's root mean square are quantized twice: a few
// outliers would else cost their whole group its precision, and a small model its likeliest token.
constexpr float kOutlier = 1.5f;

// The second group of an outlier: what rounding to `first` has left of x.
inline void quantize_rest(F32 low, F32 high, Group* first, Group* rest) {
  float q[kGroup];
  for (int64_t i = 0; i < kGroup; ++i) q[i] = first->q[i];
  const F32 minus = splat(-first->scale);
  quantize_group(fma(minus, load(q), low), fma(minus, load(q + kLanes), high), rest);
  first->total += rest->total;
  first->rest = 1;
}

// Rows depend on nothing but themselves: which groups are outliers too.
inline void quantize(const float* x, int64_t inputs, const float* weight, float eps, Group* out,
                     int64_t groups) {
  const F32 factor = splat(weight ? inverse_rms(x, inputs, eps) : 1.0f);
  const auto lanes = [&](int64_t i) {
    const F32 v = load_first(x + i, inputs - i);
    return weight ? v * factor * load_first(weight + i, inputs - i) : v;
  };
  float squares = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    quantize_group(lanes(g * kGroup), lanes(g * kGroup + kLanes), out + g);
    squares = __builtin_fmaf(out[g].scale, out[g].scale, squares);
  }
  const float limit = kOutlier * __builtin_sqrtf(squares / (float)groups);
  Group* rest = out + groups;
  memset(rest, 0, groups * sizeof *rest);
  for (int64_t g = 0; g < groups; ++g)
    if (out[g].scale > limit)
      quantize_rest(lanes(g * kGroup), lanes(g * kGroup + kLanes), out + g, rest + g);
}

// The head `x[dim]` into `y`, normed unless weight is null, its pairs (j, j + dim/2) rotated.
// `stride` is the distance of neighbours in y: keys are stored across their page's slots.
inline void rotate_head(const float* x, int64_t dim, const float* weight, float eps,
                        const float* cos, const float* sin, float* y, int64_t stride) {
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
    const F32 turned_low = fma(low, c, splat(0.0f) - high * s);
    const F32 turned_high = fma(high, c, low * s);
    if (stride == 1) {
      store_first(y + j, turned_low, count);
      store_first(y + pairs + j, turned_high, count);
      continue;
    }
    float lanes[2][kLanes];
    store(lanes[0], turned_low), store(lanes[1], turned_high);
    for (int64_t i = 0; i < count; ++i) {
      y[(j + i) * stride] = lanes[0][i];
      y[(pairs + j + i) * stride] = lanes[1][i];
    }
  }
}

// A page of one layer: keys [kv_head][dim][slot], then values [kv_head][slot][dim padded to 16].
// Scores of 16 slots are then one vector, and so are 16 dimensions of a value.
inline void rope_store(const RopeJob& job, int64_t row) {
  const int64_t dim = job.dim, pairs = dim / 2;
  const float* x = job.qkv + row * (job.heads + 2 * job.kv_heads) * dim;
  const float* cos = job.cos + job.positions[row] * pairs;
  const float* sin = job.sin + job.positions[row] * pairs;
  float* q = job.q + row * job.heads * dim;
  for (int64_t h = 0; h < job.heads; ++h, x += dim)
    rotate_head(x, dim, job.q_norm, job.q_eps, cos, sin, q + h * dim, 1);
  if (job.slots[row] < 0) return;
  float* keys = job.pages + job.slots[row] / kSlots * job.page_stride;
  float* values = keys + job.kv_heads * dim * kSlots;
  const int64_t slot = job.slots[row] % kSlots;
  for (int64_t h = 0; h < job.kv_heads; ++h, x += dim)
    rotate_head(x, dim, job.k_norm, job.k_eps, cos, sin, keys + h * dim * kSlots + slot, kSlots);
  for (int64_t h = 0; h < job.kv_heads; ++h, x += dim)
    memcpy(values + (h * kSlots + slot) * job.dim_padded, x, dim * sizeof(float));
}

}  // namespace anabranch::ANABRANCH_ISA
