#include "blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "half.h"

namespace anabranch {
namespace {

// Block layouts are those of ggml (ggml-common.h), byte by byte, so nothing needs to be aligned; the
// machine is little-endian, as the files are.
static_assert(std::endian::native == std::endian::little);

float half_at(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, 2);
  return half_to_float(half);
}

uint32_t word_at(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

// q[0..n) from low nibbles, q[n..2n) from high ones.
void nibbles(const uint8_t* packed, int64_t n, uint8_t* q) {
  for (int64_t i = 0; i < n; ++i) q[i] = packed[i] & 15;
  for (int64_t i = 0; i < n; ++i) q[n + i] = packed[i] >> 4;
}

// 32 weights: nibbles, and bit i of `high` as the fifth of weight i; 16 less if they are signed.
template <bool Signed>
void five_bits(const uint8_t* high, const uint8_t* packed, uint8_t* q) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  for (int i = 0; i < 4; ++i) {  // eight weights in a word
    uint64_t word;
    std::memcpy(&word, packed + i % 2 * 8, 8);
    word = word >> i / 2 * 4 & 0x0f * kOnes;
    // Eight copies of a byte, one bit left in each; adding 127 carries that bit to the top.
    const uint64_t bits = high[i] * kOnes & 0x8040201008040201;
    const uint64_t fifth = (bits + 0x7f * kOnes) >> 7 & kOnes;
    word |= Signed ? (kOnes - fifth) * 0xf0 : fifth * 0x10;
    std::memcpy(q + i * 8, &word, 8);
  }
}

// Eight scales and minima of 6 bits in 12 bytes, times the block's two factors.
void six_bit_factors(const uint8_t* block, float* scale, float* offset) {
  const float d = half_at(block), dmin = half_at(block + 2);
  const uint8_t *first = block + 4, *second = first + 4, *third = first + 8;
  for (int i = 0; i < 4; ++i) {
    scale[i] = d * static_cast<float>(first[i] & 63);
    scale[4 + i] = d * static_cast<float>((third[i] & 15) | first[i] >> 6 << 4);
    offset[i] = -dmin * static_cast<float>(second[i] & 63);
    offset[4 + i] = -dmin * static_cast<float>(third[i] >> 4 | second[i] >> 6 << 4);
  }
}

struct Q4_0 {
  static void integers(const uint8_t* b, uint8_t* q) { nibbles(b + 2, 16, q); }
  static void factors(const uint8_t* b, float* scale, float* offset) {
    *scale = half_at(b);
    *offset = *scale * -8.0f;
  }
};

struct Q4_1 {
  static void integers(const uint8_t* b, uint8_t* q) { nibbles(b + 4, 16, q); }
  static void factors(const uint8_t* b, float* scale, float* offset) {
    *scale = half_at(b);
    *offset = half_at(b + 2);
  }
};

struct Q5_0 {
  static void integers(const uint8_t* b, uint8_t* q) { five_bits<true>(b + 2, b + 6, q); }
  static void factors(const uint8_t* b, float* scale, float*) { *scale = half_at(b); }
};

struct Q5_1 {
  static void integers(const uint8_t* b, uint8_t* q) { five_bits<false>(b + 4, b + 8, q); }
  static void factors(const uint8_t* b, float* scale, float* offset) {
    *scale = half_at(b);
    *offset = half_at(b + 2);
  }
};

struct Q8_0 {
  static void integers(const uint8_t* b, uint8_t* q) { std::memcpy(q, b + 2, 32); }
  static void factors(const uint8_t* b, float* scale, float*) { *scale = half_at(b); }
};

struct Q4_K {
  static void integers(const uint8_t* b, uint8_t* q) {
    for (int run = 0; run < 4; ++run) nibbles(b + 16 + run * 32, 32, q + run * 64);
  }
  static void factors(const uint8_t* b, float* scale, float* offset) {
    six_bit_factors(b, scale, offset);
  }
};

struct Q5_K {
  static void integers(const uint8_t* b, uint8_t* q) {
    const uint8_t* high = b + 16;  // bit j of byte i belongs to weight i of group j
    for (int run = 0; run < 4; ++run) nibbles(b + 48 + run * 32, 32, q + run * 64);
    for (int j = 0; j < 8; ++j)
      for (int i = 0; i < 32; ++i)
        q[j * 32 + i] |= static_cast<uint8_t>((high[i] >> j & 1) << 4);
  }
  static void factors(const uint8_t* b, float* scale, float* offset) {
    six_bit_factors(b, scale, offset);
  }
};

struct Q6_K {
  static void integers(const uint8_t* b, uint8_t* q) {
    const uint8_t* high = b + 128;
    for (int run = 0; run < 2; ++run) {
      nibbles(b + run * 64, 64, q + run * 128);
      for (int j = 0; j < 4; ++j)  // bits 2j and 2j+1 of byte i belong to weight i of quarter j
        for (int i = 0; i < 32; ++i) {
          uint8_t& at = q[run * 128 + j * 32 + i];
          at = static_cast<uint8_t>((at | (high[run * 32 + i] >> 2 * j & 3) << 4) - 32);
        }
    }
  }
  static void factors(const uint8_t* b, float* scale, float*) {
    const float d = half_at(b + 208);
    for (int i = 0; i < 16; ++i)
      scale[i] = d * static_cast<float>(static_cast<int8_t>(b[192 + i]));
  }
};

// 32 numbers, rounded: scale = max |x| / 127, nearest even. If one is not finite, the scale is not.
template <int Bytes, class Number>
struct Floats {
  static void integers(const uint8_t* b, uint8_t* q) {
    constexpr float kRounds = 0x1.8p23f;  // added, it leaves no room for a fraction
    float scale;
    factors(b, &scale, nullptr);
    const float divisor = scale > 0.0f ? scale : 1.0f;
    for (int i = 0; i < 32; ++i) {
      const float level = std::clamp(Number{}(b + i * Bytes) / divisor, -127.0f, 127.0f);
      q[i] = static_cast<uint8_t>(static_cast<int8_t>(level + kRounds - kRounds));
    }
  }
  static void factors(const uint8_t* b, float* scale, float*) {
    uint32_t most = 0;  // without their signs, floats are in the order of their bits, NaN last
    for (int i = 0; i < 32; ++i)
      most = std::max(most, std::bit_cast<uint32_t>(Number{}(b + i * Bytes)) & 0x7fffffff);
    *scale = std::bit_cast<float>(most) / 127.0f;
  }
};

struct FromF32 {
  float operator()(const uint8_t* at) { return std::bit_cast<float>(word_at(at)); }
};
struct FromF16 {
  float operator()(const uint8_t* at) { return half_at(at); }
};
struct FromBF16 {
  float operator()(const uint8_t* at) {
    return std::bit_cast<float>(static_cast<uint32_t>(at[0]) << 16 |
                                static_cast<uint32_t>(at[1]) << 24);
  }
};

template <class F, int Weights, int Bytes, int Bits = 8, int GroupSize = 32, bool Offset = false>
struct Many {
  static void integers(const uint8_t* stored, int64_t blocks, uint8_t* q) {
    for (int64_t i = 0; i < blocks; ++i) F::integers(stored + i * Bytes, q + i * Weights);
  }
  static void factors(const uint8_t* stored, int64_t blocks, float* scale, float* offset) {
    constexpr int kFactors = Weights / GroupSize;
    for (int64_t i = 0; i < blocks; ++i)
      F::factors(stored + i * Bytes, scale + i * kFactors, Offset ? offset + i * kFactors : nullptr);
  }
  static constexpr BlockFormat format(const char* name, int least_bits = Bits) {
    return {name, Weights, Bytes, Bits, GroupSize, Offset, least_bits, integers, factors};
  }
};

constexpr BlockFormat kFormats[] = {
    Many<Floats<4, FromF32>, 32, 128>::format("F32"),
    Many<Floats<2, FromF16>, 32, 64>::format("F16"),
    Many<Floats<2, FromBF16>, 32, 64>::format("BF16"),
    Many<Q4_0, 32, 18, 4, 32, true>::format("Q4_0"),
    Many<Q4_1, 32, 20, 4, 32, true>::format("Q4_1"),
    Many<Q5_0, 32, 22>::format("Q5_0", 5),
    Many<Q5_1, 32, 24, 8, 32, true>::format("Q5_1", 5),
    Many<Q8_0, 32, 34>::format("Q8_0"),
    Many<Q4_K, 256, 144, 4, 32, true>::format("Q4_K"),
    Many<Q5_K, 256, 176, 8, 32, true>::format("Q5_K", 5),
    Many<Q6_K, 256, 210, 8, 16>::format("Q6_K", 6),
};

}  // namespace

const BlockFormat& block_format(const std::string& name) {
  std::string known;
  for (const BlockFormat& format : kFormats) {
    if (name == format.name) return format;
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  throw std::invalid_argument("format: got " + name + ", expected one of " + known);
}

}  // namespace anabranch
