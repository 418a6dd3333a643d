// Packed weight matrices.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace anabranch {

// A matrix to pack: quantized integers with their factors, float32 values, or a file's blocks.
struct Matrix {
  int64_t outputs, inputs;
  const uint8_t* q = nullptr;  // [outputs, inputs]; int8 if bits is 8
  int bits = 8, group = 32;
  const float* scale = nullptr;   // [outputs, inputs / group]
  const float* offset = nullptr;  // the same, or null
  const float* values = nullptr;  // [outputs, inputs], instead of all of the above
  const BlockFormat* format = nullptr;  // or this and
  const uint8_t* blocks = nullptr;      // [outputs, inputs / format->weights] of its blocks
  bool mapped = false;  // the blocks lie in a read-only shared mapping of a file
};

// A stack of matrices with the same inputs. Immutable.
class Linear {
 public:
  // Float32 matrices become 8-bit ones, symmetric, in groups of 32: scale = amax / 127.
  // Throws std::invalid_argument.
  Linear(const std::vector<Matrix>& matrices, const float* bias, Arena& arena, Pool& pool);
  Linear(const Linear&) = delete;

  int64_t inputs, outputs = 0, groups, tiles = 0, nbytes = 0;
  std::vector<Part> parts;
  std::vector<float> bias;  // [outputs] or empty

  // out[inputs] = factor * the weights of one output, dequantized exactly.
  void row(int64_t output, float factor, float* out) const;

  // Tiles of the first half of the outputs, or -1 if that half ends inside a tile.
  int64_t gate_tiles() const;

 private:
  std::vector<Arena::Piece> memory_;  // of each part
};

}  // namespace anabranch
