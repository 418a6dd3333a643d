// Quantized matrix products.
//
// The sum of one output runs over blocks of 32 groups; in a block first over the groups, each
// group's integer product exact: acc = fma(float(sum w*q), weight scale * activation scale, acc),
// then, with offsets, acc = fma(offset, activation total, acc); then, likewise, over the
// activations that are kept apart. Always in ascending order: rows, tiles and threads are only
// loops around that, so an output's bits depend on its row and its weights alone.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

// What `Part` says of a group, known when compiling.
template <int Bits, bool Fine, bool Offset, bool Half>
struct Form {
  static constexpr int kBits = Bits, kScales = Fine ? 2 : 1;
  static constexpr bool kOffset = Offset;
  static constexpr int64_t kFactorsAt = integer_bytes(Bits), kVector = kLanes * (Half ? 2 : 4);
  static constexpr int64_t kBytes = kFactorsAt + (kScales + Offset) * kVector;

  // 16 factors of a group: its scales come first, then its offsets.
  static F32 factors(const uint8_t* group, int index) {
    const uint8_t* p = group + kFactorsAt + index * kVector;
    if constexpr (Half) return load_half((const uint16_t*)p);
    else return load((const float*)p);
  }
};

// Groups [begin, end) of one tile for R rows, added to `acc[R][16]`.
template <class Form, int R>
void dot_tile(const uint8_t* tile, const Group* x, int64_t row_stride, int64_t begin, int64_t end,
              float* acc) {
  F32 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = load(acc + r * kLanes);
  for (int64_t g = begin; g < end; ++g) {
    const uint8_t* lines = tile + g * Form::kBytes;
    const Group* a = x + g;
    if constexpr (Form::kBits == 4) {
      Dot4 dot[R];
      for (int line = 0; line < 4; ++line) {
        const Line both = load_line(lines + 64 * line);
        const Line low = low_nibbles(both), high = high_nibbles(both);
        for (int r = 0; r < R; ++r) dot[r].add(low, load_quad(a[r * row_stride].q + 8 * line));
        for (int r = 0; r < R; ++r) dot[r].add(high, load_quad(a[r * row_stride].q + 8 * line + 4));
      }
      const F32 scale = Form::factors(lines, 0);
      for (int r = 0; r < R; ++r)
        sums[r] = fma(to_float(dot[r].sum()), scale * splat(a[r * row_stride].scale), sums[r]);
    } else {
      constexpr int kLines = 8 / Form::kScales;
      for (int part = 0; part < Form::kScales; ++part) {
        Dot8 dot[R];
        for (int r = 0; r < R; ++r) {
          const int16_t* sum = a[r * row_stride].sum;
          dot[r].start(Form::kScales == 2 ? sum[part] : sum[0] + sum[1]);
        }
        for (int line = part * kLines; line < (part + 1) * kLines; ++line) {
          const Dot8::Weights w = Dot8::prepare(load_line(lines + 64 * line));
          for (int r = 0; r < R; ++r) dot[r].add(w, load_quad(a[r * row_stride].q + 4 * line));
        }
        const F32 scale = Form::factors(lines, part);
        for (int r = 0; r < R; ++r)
          sums[r] = fma(to_float(dot[r].sum()), scale * splat(a[r * row_stride].scale), sums[r]);
      }
    }
    if constexpr (Form::kOffset) {
      const F32 offset = Form::factors(lines, Form::kScales);
      for (int r = 0; r < R; ++r) sums[r] = fma(offset, splat(a[r * row_stride].total), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(acc + r * kLanes, sums[r]);
}

// The 16 weights of one input of a group.
template <int Bits>
inline I32 weights_of(const uint8_t* lines, int input) {
  if constexpr (Bits == 4) {
    const I32 line = load((const int32_t*)(lines + input / 8 * 64));
    return line >> (input % 4 * 8 + input / 4 % 2 * 4) & 15;
  }
  return load((const int32_t*)(lines + input / 4 * 64)) << (24 - input % 4 * 8) >> 24;
}

// The activations of one row that are kept apart, in the groups `from + i` of the bits i of `mask`.
template <class Form>
void add_apart(const uint8_t* tile, const Group* row, int64_t from, uint32_t mask, float* acc) {
  F32 sums = load(acc);
  for (; mask; mask &= mask - 1) {
    const int64_t g = from + __builtin_ctz(mask);
    const int at = row[g].apart_at;
    const uint8_t* lines = tile + g * Form::kBytes;
    const F32 scale = Form::factors(lines, at / (32 / Form::kScales));
    const I32 product = multiply_short(weights_of<Form::kBits>(lines, at), row[g].apart);
    sums = fma(to_float(product), scale * splat(row[g].scale), sums);
  }
  store(acc, sums);
}

// All groups of one tile for `rows` rows, into `acc[rows][16]`.
template <class Form>
void dot_rows(const uint8_t* tile, const Group* x, const uint32_t* apart, int64_t groups,
              int64_t rows, float* acc) {
  memset(acc, 0, rows * kLanes * sizeof *acc);
  const int64_t blocks = group_blocks(groups);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kGroupBlock;
    const int64_t end = begin + kGroupBlock < groups ? begin + kGroupBlock : groups;
    int64_t r = 0;
    const auto some = [&]<int R>() {
      for (; rows - r >= R; r += R)
        dot_tile<Form, R>(tile, x + r * groups, groups, begin, end, acc + r * kLanes);
    };
    if constexpr (kTileRows >= 8) some.template operator()<8>();
    some.template operator()<4>();
    some.template operator()<2>();
    some.template operator()<1>();
    for (r = 0; r < rows; ++r)
      if (const uint32_t mask = apart[r * blocks + block])
        add_apart<Form>(tile, x + r * groups, begin, mask, acc + r * kLanes);
  }
}

using DotRows = void (*)(const uint8_t* tile, const Group* x, const uint32_t* apart,
                         int64_t groups, int64_t rows, float* acc);

inline DotRows dot_rows_for(const Part& part) {
  const auto pick = [&]<int Bits, bool Fine, bool Offset>() -> DotRows {
    return part.half ? dot_rows<Form<Bits, Fine, Offset, true>>
                     : dot_rows<Form<Bits, Fine, Offset, false>>;
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
  dot_rows_for(*part)(part->data + local * part->tile_bytes, job.x + row * job.groups,
                      job.apart + row * group_blocks(job.groups), job.groups, row_end - row, acc);
  if (job.bias) {
    const F32 bias = load_first(job.bias + at.first, at.count);
    for (int64_t r = 0; r < row_end - row; ++r)
      store(acc + r * kLanes, load(acc + r * kLanes) + bias);
  }
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
