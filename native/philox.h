// Philox4x32-10 (Salmon et al., SC 2011), as in backends/philox.py.
#pragma once

#include <array>
#include <cstdint>

namespace anabranch {

inline std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> counter) {
  auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  auto [a, b, c, d] = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * a, second = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(second >> 32) ^ b ^ low;
    b = static_cast<uint32_t>(second);
    c = static_cast<uint32_t>(first >> 32) ^ d ^ high;
    d = static_cast<uint32_t>(first);
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return {a, b, c, d};
}

// The random number of a stream at a position, in (0, 1): 24 bits of the first word.
inline double uniform(uint64_t key, int32_t position) {
  const uint32_t word = philox(key, {static_cast<uint32_t>(position), 0, 0, 0})[0];
  return (static_cast<double>(word >> 8) + 0.5) * 0x1p-24;
}

}  // namespace anabranch
