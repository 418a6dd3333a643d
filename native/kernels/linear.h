// Quantized matrix products.
//
// The sum of one output runs over blocks of 32 groups; in a block first over the groups, each
// group's integer product exact: acc = fma(float(sum w*q), weight scale * activation scale, acc),
// then, with offsets, acc = fma(offset, activation total, acc); then over the activations that are
// kept apart: acc = fma(weight * weight scale, activation * activation scale, acc). Always in
// ascending order: rows, tiles and threads are only loops around that, so an output's bits depend on
// its row and its weights alone.
#pragma once

#include "../kernels.h"
#include "../simd.h"

namespace anabranch::ANABRANCH_ISA {

// What `Part` says of a group, known when compiling.
template <int Bits, bool Fine, bool Offset, bool Half>
struct Form {
  using Dot = ANABRANCH_ISA::Dot<Bits, !Offset>;

  static constexpr int kBits = Bits, kScales = Fine ? 2 : 1, kLines = kGroup / 4 / kScales;
  static constexpr bool kOffset = Offset;
  static constexpr int64_t kFactorsAt = integer_bytes(Bits), kVector = kLanes * (Half ? 2 : 4);
  static constexpr int64_t kBytes = kFactorsAt + (kScales + Offset) * kVector;

  // 16 factors of a group: its scales come first, then its offsets.
  static F32 factors(const uint8_t* group, int index) {
    const uint8_t* p = group + kFactorsAt + index * kVector;
    if constexpr (Half) return load_half((const uint16_t*)p);
    else return load((const float*)p);
  }

  // Inputs 4L to 4L + 3 of a group, one in each byte.
  template <int L>
  static Line line(const uint8_t* group) {
    if constexpr (Bits == 8) return load_line(group + 64 * L);
    const uint8_t* planes = group + integer_bytes(4);
    const Line nibbles = shifted<L % 2 ? -4 : 0, 15>(load_line(group + L / 2 * 64));
    if constexpr (Bits == 5) return nibbles | shifted<4 - L, 16>(load_line(planes));
    if constexpr (Bits == 6)
      return nibbles | shifted<4 - L % 4 * 2, 48>(load_line(planes + L / 4 * 64));
    return nibbles;
  }

  // The 16 weights of one input of a group.
  static I32 weights(const uint8_t* group, int input) {
    const int line = input / 4, byte = input % 4 * 8;
    const auto part = [&](int64_t at, int shift) {
      return load((const int32_t*)(group + at)) >> (byte + shift);
    };
    if constexpr (Bits == 8) return part(line * 64, 0) << 24 >> 24;
    const I32 nibbles = part(line / 2 * 64, line % 2 * 4) & 15;
    I32 w = nibbles;
    if constexpr (Bits == 5) w = nibbles | (part(integer_bytes(4), line) & 1) << 4;
    if constexpr (Bits == 6)
      w = nibbles | (part(integer_bytes(4) + line / 4 * 64, line % 4 * 2) & 3) << 4;
    if constexpr (Offset) return w;
    return w - (1 << (Bits - 1));
  }
};

#define INLINE __attribute__((always_inline))

template <int From, int End, class F>
INLINE inline void unroll(const F& f) {
  if constexpr (From < End) {
    f.template operator()<From>();
    unroll<From + 1, End>(f);
  }
}

// Tiles lie in the order of their use. The processor's own prefetch ends with each page of 4 KiB;
// this one goes on, and past the outer caches, where others keep what they need again.
constexpr int64_t kAhead = 3072;

constexpr int64_t kReadyBytes = integer_bytes(8);  // of a group whose lines are laid open

template <class Form>
inline void lay_open(const uint8_t* groups, int64_t count, uint8_t* ready) {
  for (int64_t g = 0; g < count; ++g, groups += Form::kBytes, ready += kReadyBytes)
    unroll<0, 8>([&]<int L>() INLINE {
      store_line(ready + 64 * L, Form::template line<L>(groups));
    });
}

// `count` groups of one tile for R rows, added to `acc[R][16]`. `ready` are their lines laid open,
// or null if they are to be taken as they are packed.
template <class Form, bool Ready, int R>
void dot_tile(const uint8_t* group, const uint8_t* ready, const Group* x, int64_t row_stride,
              int64_t count, float* acc) {
  F32 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = load(acc + r * kLanes);
  for (int64_t g = 0; g < count; ++g, ++x, group += Form::kBytes) {
    if constexpr (!Ready)
      for (int64_t at = 0; at < Form::kBytes; at += 64)
        __builtin_prefetch(group + kAhead + at, 0, 0);
    unroll<0, Form::kScales>([&]<int Part>() INLINE {
      using Dot = typename Form::Dot;
      Dot dot[R];
      constexpr int kRun = Dot::kRun < Form::kLines ? Dot::kRun : Form::kLines;
      unroll<0, Form::kLines>([&]<int I>() INLINE {
        constexpr int L = Part * Form::kLines + I;
        if constexpr (I % kRun == 0)
          for (int r = 0; r < R; ++r) {
            const auto& sum = x[r * row_stride].sum;
            dot[r].begin(kRun == 4 ? load_pair(sum[L / 4]) : load_pair(sum[0]) + load_pair(sum[1]));
          }
        const auto w = Dot::prepare(Ready ? load_line(ready + g * kReadyBytes + 64 * L)
                                          : Form::template line<L>(group));
        for (int r = 0; r < R; ++r) dot[r].add(w, load_quad(x[r * row_stride].q + 4 * L));
        if constexpr ((I + 1) % kRun == 0)
          for (int r = 0; r < R; ++r) dot[r].fold();
      });
      const F32 scale = Form::factors(group, Part);
      for (int r = 0; r < R; ++r)
        sums[r] = fma(to_float(dot[r].sum()), scale * splat(x[r * row_stride].scale), sums[r]);
    });
    if constexpr (Form::kOffset) {
      const F32 offset = Form::factors(group, Form::kScales);
      for (int r = 0; r < R; ++r) sums[r] = fma(offset, splat(x[r * row_stride].total), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(acc + r * kLanes, sums[r]);
}

// Activations that are kept apart, added to `acc[rows][16]`. Rows have theirs in the same places
// mostly, so a place's weights serve many rows.
template <class Form>
void add_apart(const uint8_t* tile, const Apart* entry, const Apart* end, float* acc) {
  while (entry < end) {
    const int64_t group = entry->group, at = entry->at;
    const uint8_t* lines = tile + group * Form::kBytes;
    const F32 scale = Form::factors(lines, (int)at / (32 / Form::kScales));
    const F32 weights = to_float(Form::weights(lines, (int)at)) * scale;
    for (; entry < end && entry->group == group && entry->at == at; ++entry) {
      float* sums = acc + entry->row * kLanes;
      store(sums, fma(weights, splat(entry->value), load(sums)));
    }
  }
}

// All groups of one tile for `rows` rows, into `acc[rows][16]`.
template <class Form>
void dot_rows(const uint8_t* tile, const Group* x, const Apart* apart, const int32_t* apart_starts,
              int64_t groups, int64_t rows, float* acc) {
  alignas(64) uint8_t ready[kGroupBlock * kReadyBytes];
  const bool open = Form::kBits < 8 && rows > kTileRows;  // else it costs more than it saves
  memset(acc, 0, rows * kLanes * sizeof *acc);
  const int64_t blocks = group_blocks(groups);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kGroupBlock, rest = groups - begin;
    const int64_t count = rest < kGroupBlock ? rest : kGroupBlock;
    const uint8_t* group = tile + begin * Form::kBytes;
    if (open) lay_open<Form>(group, count, ready);
    int64_t r = 0;
    const auto some = [&]<int R>() {
      for (; rows - r >= R; r += R) {
        const Group* row = x + r * groups + begin;
        if (open) dot_tile<Form, true, R>(group, ready, row, groups, count, acc + r * kLanes);
        else dot_tile<Form, false, R>(group, nullptr, row, groups, count, acc + r * kLanes);
      }
    };
    if constexpr (kTileRows >= 8) some.template operator()<8>();
    some.template operator()<4>();
    some.template operator()<2>();
    some.template operator()<1>();
    add_apart<Form>(tile, apart + apart_starts[block], apart + apart_starts[block + 1], acc);
  }
}

using DotRows = void (*)(const uint8_t* tile, const Group* x, const Apart* apart,
                         const int32_t* apart_starts, int64_t groups, int64_t rows, float* acc);

inline DotRows dot_rows_for(const Part& part) {
  const auto pick = [&]<int Bits, bool Fine, bool Offset>() -> DotRows {
    return part.half ? dot_rows<Form<Bits, Fine, Offset, true>>
                     : dot_rows<Form<Bits, Fine, Offset, false>>;
  };
  const auto offset = [&]<int Bits>() {
    return part.offset ? pick.template operator()<Bits, false, true>()
                       : pick.template operator()<Bits, false, false>();
  };
  if (part.fine)
    return part.bits == 6 ? pick.template operator()<6, true, false>()
                          : pick.template operator()<8, true, false>();
  if (part.bits == 4) return offset.template operator()<4>();
  if (part.bits == 5) return offset.template operator()<5>();
  if (part.bits == 6) return pick.template operator()<6, false, false>();
  return offset.template operator()<8>();
}

// One tile's products with bias, and where they go: `first` output, `count` of them.
struct TileOutputs { int64_t first, count; };

inline TileOutputs multiply_tile(const LinearJob& job, int64_t tile, int64_t row, int64_t row_end,
                                 float* acc) {
  const Part* part = job.parts;
  while (tile >= part->first_tile + part->tiles) ++part;
  const int64_t local = tile - part->first_tile, rest = part->outputs - local * kTile;
  const TileOutputs at = {part->first_output + local * kTile, rest < kTile ? rest : kTile};
  const int64_t block = row / kRowBlock;
  dot_rows_for(*part)(part->data + local * part->tile_bytes, job.x + row * job.groups,
                      job.apart + block * kRowBlock * job.groups,
                      job.apart_starts + block * (group_blocks(job.groups) + 1), job.groups,
                      row_end - row, acc);
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
