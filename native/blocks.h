// Weights as model files store them: blocks of ggml's formats, spread into integers and factors.
#pragma once

#include <cstdint>
#include <string>

namespace anabranch {

// One format; what its blocks become is what models/quants.py says, to the bit.
struct BlockFormat {
  const char* name;
  int64_t weights, bytes;  // of one block
  int bits, group;         // what they become, as in Matrix
  bool has_offset;
  int least_bits;  // that hold the integers
  // Of consecutive blocks: q[blocks, weights].
  void (*integers)(const uint8_t* stored, int64_t blocks, uint8_t* q);
  // Of consecutive blocks: scale and, if there are any, offset[blocks, weights / group].
  void (*factors)(const uint8_t* stored, int64_t blocks, float* scale, float* offset);
};

// Throws std::invalid_argument if there is no such format.
const BlockFormat& block_format(const std::string& name);

}  // namespace anabranch
