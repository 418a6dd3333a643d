// What the instruction-set specific half of the library offers to the other half.
//
// Plain structs and function pointers only: this header is compiled under every set of flags.
#pragma once

#include <stdint.h>

namespace anabranch {

constexpr int64_t kTile = 16;      // outputs of a weight tile
constexpr int64_t kGroup = 32;     // inputs that share an activation scale
constexpr int64_t kSlots = 16;     // KV slots of a page
constexpr int64_t kSpan = 256;     // positions whose attention is summed as one
constexpr int64_t kRowBlock = 64;  // most rows that meet a weight tile while it is in cache
constexpr int64_t kGroupBlock = 32;  // groups of a tile that stay in L1 while rows pass by

// A row's activations of one group: x = scale * q. Where the largest of them would cost the others
// too much precision it is kept apart, in up to 14 bits: x[apart_at] = scale * apart, with 0 in its
// place in q.
struct Group {
  int8_t q[kGroup];  // in [-127, 127]
  float scale;
  float total;        // scale * sum of all integers, to be multiplied with weight offsets
  int16_t sum[2][2];  // of q, by half groups: at 0 and 1 of every four inputs, and at 2 and 3
  int16_t apart;      // 0: none
  int16_t apart_at;
};

// Such an activation of a row, times its scale.
struct Apart {
  int32_t row, group, at;
  float value;
};

constexpr int64_t group_blocks(int64_t groups) { return (groups + kGroupBlock - 1) / kGroupBlock; }

// One matrix of a stack, in tiles of 16 outputs. A tile is its groups of 32 inputs one after the
// other, read once from front to back; a group is its integers, then its factors.
//   integers: lines of 64 bytes, 4 consecutive inputs of 16 outputs. Below 8 bits, a line holds the
//             lower nibbles of the first 4 inputs and of the next 4; at 5 bits, bit i of one more
//             line is the high bit of inputs 4i to 4i + 3; at 6 bits, two more lines hold the two
//             high bits of 16 inputs each. They are unsigned, and without offsets they stand for
//             themselves less 2^(bits - 1). At 8 bits they are signed.
//   factors:  16 scales (twice that if `fine`), then 16 offsets if it has them; all of them
//             binary16 if `half`, which is only used where that loses nothing.
struct Part {
  int32_t bits;  // 4, 5, 6 or 8
  bool fine;     // groups of 16 inputs
  bool offset;
  bool half;
  int64_t outputs, first_output, first_tile, tiles;
  int64_t group_bytes, tile_bytes;
  const uint8_t* data;
};

// Bytes of a group's integers.
constexpr int64_t integer_bytes(int bits) { return kTile * kGroup * bits / 8; }

enum class Activation : int32_t { none, silu, gelu_tanh };

struct LinearJob {
  const Part* parts;
  int64_t groups;
  const float* bias;  // [outputs] or null
  const Group* x;     // [rows, groups]
  // Of each block of kRowBlock rows: what is kept apart of group block b is [starts[b], starts[b + 1]),
  // by ascending group, equal places together; rows count from the first of the block.
  const Apart* apart;           // [row blocks, kRowBlock * groups]
  const int32_t* apart_starts;  // [row blocks, group blocks + 1]
  Activation activation;
  int64_t gate_tiles;  // with an activation: tiles of the gate half; those of `up` follow
  bool add;
  float* out;
  int64_t out_stride;
};

// How keys and values are kept. Arithmetic is in float.
enum class Storage : int32_t { f32, bf16 };
struct Bf16 { uint16_t bits; };  // the upper half of a float

struct RopeJob {
  const float *qkv, *cos, *sin;
  const float *q_norm, *k_norm;  // [dim] or null
  float q_eps, k_eps;
  const int32_t *positions, *slots;
  float* q;
  void* pages;  // of this layer
  Storage storage;
  int64_t heads, kv_heads, dim, dim_padded, page_stride;  // stride in numbers, not bytes
};

// Consecutive columns of the page tables that the same consecutive rows share, inside one span.
struct Work {
  int64_t row_begin, row_end;
  int64_t grid;  // index of the first page on the absolute grid
  int64_t count;
  const int32_t* pages;
};

struct AttendJob {
  const float* q;
  float* out;
  const void* pages;  // of this layer
  Storage storage;
  int64_t heads, kv_heads, dim, dim_padded, page_stride;
  float scale;
  int64_t window;
  const int32_t* positions;
  const Work* works;  // so ordered that each row meets its pages in ascending grid order
  const int64_t* span_works;  // those of span s: [span_works[s], span_works[s + 1])
  int64_t span, span_end;     // all that these rows see
  int64_t row, row_end;
  float* sums;  // rows * heads * spans * (dim_padded + 2)
};

// A row of logits, in nats. NaN mass: the row has no distribution (NaN, +inf, or nothing but -inf).
struct RowStats {
  float top;      // the largest logit
  double mass;    // sum of exp(z - top)
  double moment;  // sum of exp(z - top) * (z - top)
};

constexpr int64_t kMassBlock = 1024;  // logits whose probabilities are summed in float

struct Kernels {
  const char* isa;
  // Quantize one row `x[inputs]`, RMS-normed first unless norm is null, into `groups` groups.
  void (*quantize)(const float* x, int64_t inputs, const float* norm, float eps, int64_t groups,
                   Group* out, uint32_t* apart);
  // Tiles [tile, tile_end) of rows [row, row_end), at most kRowBlock of them.
  void (*linear)(const LinearJob& job, int64_t tile, int64_t tile_end, int64_t row,
                 int64_t row_end);
  // out = or += the RMS norm of x[n].
  void (*norm)(const float* x, int64_t n, const float* weight, float eps, bool add, float* out);
  void (*rope_store)(const RopeJob& job, int64_t row);
  // Floats of scratch that `attend` wants for a block of queries (rows times heads per kv head).
  int64_t (*attend_scratch)(const AttendJob& job, int64_t queries);
  // Sum one span for a block of rows; then, for each row, merge its spans into the job's out.
  void (*attend)(const AttendJob& job, int64_t span, int64_t kv_head, int64_t row, int64_t row_end,
                 float* scratch);
  void (*merge)(const AttendJob& job, int64_t row);
  RowStats (*row_stats)(const float* z, int64_t n);
  // p = exp((z - top) / temperature); block_mass[i] sums block i of 1024. Returns the whole sum.
  double (*tempered)(const float* z, int64_t n, float top, float temperature, float* p,
                     double* block_mass);
  // Ids with p >= least in ascending order. Returns their number; writes at most n.
  int64_t (*at_least)(const float* p, int64_t n, float least, int32_t* ids);
};


namespace portable { extern const Kernels kKernels; }
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }

}  // namespace anabranch
