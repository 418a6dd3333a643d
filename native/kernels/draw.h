// Passes over a row of logits.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

// Lanes [i, i + 16) of z[n]; past the end, -inf.
inline F32 load_logits(const float* z, int64_t i, int64_t n) {
  if (n - i >= kLanes) return load(z + i);
  return keep_range(load_first(z + i, n - i), 0, (int)(n - i), splat(-__builtin_inff()));
}

inline RowStats row_stats(const float* z, int64_t n) {
  F32 tops = splat(-__builtin_inff());
  for (int64_t i = 0; i < n; i += kLanes) tops = max(load_logits(z, i, n), tops);
  RowStats stats = {maximum(tops), 0.0, 0.0};
  const F32 top = splat(stats.top);
  for (int64_t block = 0; block < n; block += kMassBlock) {
    F32 mass = splat(0.0f), moment = splat(0.0f);
    const int64_t end = block + kMassBlock < n ? block + kMassBlock : n;
    for (int64_t i = block; i < end; i += kLanes) {
      const F32 t = load_logits(z, i, n) - top, e = exp(t);
      mass = mass + e;
      moment = fma(e, max(splat(-100.0f), t), moment);  // e is 0 below: 0 times -inf must be 0
    }
    stats.mass += (double)sum(mass);
    stats.moment += (double)sum(moment);
  }
  return stats;
}

inline double tempered(const float* z, int64_t n, float top, float temperature, float* p,
                       double* block_mass) {
  double whole = 0.0;
  for (int64_t block = 0; block < n; block += kMassBlock) {
    F32 mass = splat(0.0f);
    const int64_t end = block + kMassBlock < n ? block + kMassBlock : n;
    for (int64_t i = block; i < end; i += kLanes) {
      const F32 e = exp((load_logits(z, i, n) - splat(top)) / splat(temperature));
      mass = mass + e;
      store_first(p + i, e, n - i);
    }
    whole += block_mass[block / kMassBlock] = (double)sum(mass);
  }
  return whole;
}

inline int64_t at_least(const float* p, int64_t n, float least, int32_t* ids) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    uint32_t mask = mask_not_less(load_first(p + i, n - i), splat(least));
    if (n - i < kLanes) mask &= (1u << (n - i)) - 1;
    for (; mask; mask &= mask - 1) ids[count++] = (int32_t)(i + __builtin_ctz(mask));
  }
  return count;
}

}  // namespace anabranch::ANABRANCH_ISA
