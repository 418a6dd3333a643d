// Quantized matrix products.
//
// The sum of one output runs over the groups of 32 inputs in ascending order, each group's integer
// product exact: acc = fma(float(sum w*q), weight scale * activation scale, acc), for outliers once
// more with what rounding had left of them, then, with offsets, acc = fma(offset, total, acc). Rows, tiles and cache blocks are only loops
// around that, so an output's bits depend on its row and its weights alone.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

constexpr int64_t kGroupBlock = 32;  // groups of a tile that stay in L1 while rows pass by

template <bool Half>
inline F32 load_factors(const uint8_t* p) {
  if constexpr (Half) return load_half((const uint16_t*)p);
  else return load((const float*)p);
}

// The product of one group for R rows, integers exact, added to their sums.
template <int Bits, bool Fine, bool Half, int R>
inline void add_products(const uint8_t* lines, const uint8_t* factors, const Group* a,
                         int64_t row_stride, F32* sums) {
  constexpr int64_t kVector = kLanes * (Half ? 2 : 4);
  if constexpr (Bits == 4) {
    Dot4 dot[R];
    for (int line = 0; line < 4; ++line) {
      const Line both = load_line(lines + 64 * line);
      const Line low = low_nibbles(both), high = high_nibbles(both);
      for (int r = 0; r < R; ++r) dot[r].add(low, load_quad(a[r * row_stride].q + 8 * line));
      for (int r = 0; r < R; ++r) dot[r].add(high, load_quad(a[r * row_stride].q + 8 * line + 4));
    }
    const F32 scale = load_factors<Half>(factors);
    for (int r = 0; r < R; ++r)
      sums[r] = fma(to_float(dot[r].sum()), scale * splat(a[r * row_stride].scale), sums[r]);
  } else {
    constexpr int kParts = Fine ? 2 : 1, kLines = 8 / kParts;
    for (int part8 = 0; part8 < kParts; ++part8) {
      Dot8 dot[R];
      for (int r = 0; r < R; ++r) {
        const int16_t* sum = a[r * row_stride].sum;
        dot[r].start(Fine ? sum[part8] : sum[0] + sum[1]);
      }
      for (int line = part8 * kLines; line < (part8 + 1) * kLines; ++line) {
        const Dot8::Weights w = Dot8::prepare(load_line(lines + 64 * line));
        for (int r = 0; r < R; ++r) dot[r].add(w, load_quad(a[r * row_stride].q + 4 * line));
      }
      const F32 scale = load_factors<Half>(factors + part8 * kVector);
      for (int r = 0; r < R; ++r)
        sums[r] = fma(to_float(dot[r].sum()), scale * splat(a[r * row_stride].scale), sums[r]);
    }
  }
}

// Groups [begin, end) of one tile for R rows, added to `acc[R][16]`.
template <int Bits, bool Fine, bool Offset, bool Half, int R>
void dot_tile(const uint8_t* tile, const Group* x, int64_t row_stride,
              int64_t begin, int64_t end, float* acc) {
  constexpr int64_t kVector = kLanes * (Half ? 2 : 4);
  constexpr int64_t kBytes = integer_bytes(Bits) + ((Fine ? 2 : 1) + Offset) * kVector;
  F32 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = load(acc + r * kLanes);
  for (int64_t g = begin; g < end; ++g) {
    const uint8_t* lines = tile + g * kBytes;
    const uint8_t* factors = lines + integer_bytes(Bits);
    const Group* a = x + g;
    add_products<Bits, Fine, Half, R>(lines, factors, a, row_stride, sums);
    uint32_t rest = 0;
    for (int r = 0; r < R; ++r) rest |= a[r * row_stride].rest;
    // For rows without a second group this adds a zero, which changes nothing.
    if (rest) add_products<Bits, Fine, Half, R>(lines, factors, a + row_stride / 2, row_stride, sums);
    if constexpr (Offset) {
      const F32 offset = load_factors<Half>(factors + (Fine ? 2 : 1) * kVector);
      for (int r = 0; r < R; ++r) sums[r] = fma(offset, splat(a[r * row_stride].total), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(acc + r * kLanes, sums[r]);
}

// All groups of one tile for `rows` rows, into `acc[rows][16]`.
template <int Bits, bool Fine, bool Offset, bool Half>
void dot_rows(const uint8_t* tile, const Group* x, int64_t groups, int64_t rows,
              float* acc) {
  memset(acc, 0, rows * kLanes * sizeof *acc);
  const int64_t block = rows > kTileRows ? kGroupBlock : groups;
  for (int64_t begin = 0; begin < groups; begin += block) {
    const int64_t end = begin + block < groups ? begin + block : groups;
    int64_t r = 0;
    const auto some = [&]<int R>() {
      for (; rows - r >= R; r += R)
        dot_tile<Bits, Fine, Offset, Half, R>(tile, x + 2 * r * groups, 2 * groups, begin, end,
                                              acc + r * kLanes);
    };
    if constexpr (kTileRows >= 8) some.template operator()<8>();
    some.template operator()<4>();
    some.template operator()<2>();
    some.template operator()<1>();
  }
}

using DotRows = void (*)(const uint8_t*, const Group*, int64_t, int64_t, float*);

inline DotRows dot_rows_for(const Part& part) {
  const auto pick = [&]<int Bits, bool Fine, bool Offset>() -> DotRows {
    return part.half ? dot_rows<Bits, Fine, Offset, true> : dot_rows<Bits, Fine, Offset, false>;
  };
  if (part.bits == 4)
    return part.offset ? pick.template operator()<4, false, true>()
                       : pick.template operator()<4, false, false>();
  if (part.fine) return pick.template operator()<8, true, false>();
  return part.offset ? pick.template operator()<8, false, true>()
                     : pick.template operator()<8, false, false>();
}

// One tile's products with bias, and where they go: `first` output, `count` of them.
struct TileOutputs { int64_t first, count; };

inline TileOutputs multiply_tile(const LinearJob& job, int64_t tile, int64_t row, int64_t row_end,
                                 float* acc) {
  const Part* part = job.parts;
  while (tile >= part->first_tile + part->tiles) ++part;
  const int64_t local = tile - part->first_tile, rest = part->outputs - local * kTile;
  const TileOutputs at = {part->first_output + local * kTile, rest < kTile ? rest : kTile};
  dot_rows_for(*part)(part->data + local * part->tile_bytes, job.x + 2 * row * job.groups,
                      job.groups, row_end - row, acc);
  // No output is -0: whether a zero was added to it for another row's outlier must not show.
  const F32 bias = job.bias ? load_first(job.bias + at.first, at.count) : splat(0.0f);
  for (int64_t r = 0; r < row_end - row; ++r)
    store(acc + r * kLanes, load(acc + r * kLanes) + splat(0.0f) + bias);
  return at;
}

inline void linear(const LinearJob& job, int64_t tile, int64_t tile_end, int64_t row,
                   int64_t row_end) {
  alignas(64) float acc[kRowBlock * kLanes], up[kRowBlock * kLanes];
  for (; tile < tile_end; ++tile) {
    const TileOutputs at = multiply_tile(job, tile, row, row_end, acc);
    const bool gated = job.activation != Activation::none;
    if (gated) multiply_tile(job, tile + job.gate_tiles, row, row_end, up);
    for (int64_t r = row; r < row_end; ++r) {
      F32 y = load(acc + (r - row) * kLanes);
      if (gated) {
        y = job.activation == Activation::silu ? silu(y) : gelu_tanh(y);
        y = y * load(up + (r - row) * kLanes);
      }
      float* out = job.out + r * job.out_stride + at.first;
      if (job.add) y = load_first(out, at.count) + y;
      store_first(out, y, at.count);
    }
  }
}

}  // namespace anabranch::ANABRANCH_ISA
