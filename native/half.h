// IEEE 754 binary16, in integers.
#pragma once

#include <bit>
#include <cstdint>

namespace anabranch {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Read with float's exponent bias, then scaled by the difference: exact, subnormals too.
  return std::bit_cast<float>(sign | rest << 13) * 0x1p112f;
}

// Towards zero; exact for every value that binary16 holds.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const auto exponent = static_cast<int>(bits >> 23 & 0xff) - 112;
  const uint32_t mantissa = bits & 0x7fffff;
  if (exponent >= 31) return sign | 0x7bff;
  if (exponent > 0) return static_cast<uint16_t>(sign | exponent << 10 | mantissa >> 13);
  if (exponent < -10) return sign;
  return static_cast<uint16_t>(sign | (mantissa | 0x800000) >> (14 - exponent));
}

}  // namespace anabranch
