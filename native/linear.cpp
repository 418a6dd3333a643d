#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "half.h"

namespace anabranch {
namespace {

using std::invalid_argument;
using std::to_string;

void check(const Matrix& m, int64_t inputs) {
  if (m.inputs != inputs)
    throw invalid_argument("pack: all matrices need the same inputs; got " + to_string(m.inputs) +
                           ", expected " + to_string(inputs));
  if (m.outputs < 1 || m.inputs < 1)
    throw invalid_argument("pack: a matrix is empty, got [" + to_string(m.outputs) + ", " +
                           to_string(m.inputs) + "]");
  if (m.values) return;
  const bool known = (m.group == 32 && (m.bits == 4 || m.bits == 8)) ||
                     (m.group == 16 && m.bits == 8 && !m.offset);
  if (!known)
    throw invalid_argument("pack: got " + to_string(m.bits) + " bits in groups of " +
                           to_string(m.group) + (m.offset ? " with offsets" : "") +
                           ", expected 4 or 8 in groups of 32, or 8 in groups of 16 without");
  if (inputs % m.group)
    throw invalid_argument("pack: got " + to_string(inputs) + " inputs, expected whole groups of " +
                           to_string(m.group));
}

// Whether binary16 holds all factors exactly. Throws if one is not finite.
bool all_half(const float* factors, int64_t count) {
  bool half = true;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(factors[i]))
      throw invalid_argument("pack: scale or offset " + to_string(i) + " is not finite, got " +
                             to_string(factors[i]));
    half = half && half_to_float(float_to_half(factors[i])) == factors[i];
  }
  return half;
}

// The least bits that hold all integers exactly: unsigned with offsets, else centred.
int least_bits(const Matrix& m) {
  if (m.format) return m.format->least_bits;
  const int64_t count = m.outputs * m.inputs;
  const auto* q = reinterpret_cast<const int8_t*>(m.q);
  int low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i)
    low = std::min<int>(low, q[i]), high = std::max<int>(high, q[i]);
  const int least = m.group == 16 ? 6 : 4, most = m.offset ? 5 : 6;  // forms that there are
  for (int bits = least; bits <= most; ++bits) {
    const int centre = m.offset ? 0 : 1 << (bits - 1);
    if (low + centre >= 0 && high + centre < 1 << bits) return bits;
  }
  return 8;
}

// Whether offsets only centre 4-bit integers, as in Q4_0. Where scales fit binary16, nothing rounds.
bool only_centres(const Matrix& m) {
  const int64_t count = m.outputs * (m.inputs / m.group);
  for (int64_t i = 0; m.offset && i < count; ++i)
    if (m.offset[i] != -8.0f * m.scale[i]) return false;
  return m.offset != nullptr;
}

// Calls work(tile) for all tiles of 16 outputs. Of a mapped file, only the pages of some tiles are in
// memory at a time: they leave it, for the system's cache, once they were read.
template <class Work>
void run_tiles(Pool& pool, const Matrix& m, const Work& work) {
  constexpr int64_t kBand = 256;
  const int64_t tiles = (m.outputs + kTile - 1) / kTile;
  for (int64_t first = 0; first < tiles; first += kBand) {
    const int64_t count = std::min(kBand, tiles - first);
    pool.run(count, [&](int64_t t, int) { work(first + t); });
    if (!m.mapped) continue;
    const int64_t row_bytes = m.inputs / m.format->weights * m.format->bytes;
    const uint8_t* end = m.blocks + std::min((first + count) * kTile, m.outputs) * row_bytes;
    release_mapped(m.blocks + first * kTile * row_bytes, end);
  }
}

// The factors of a matrix, spread if it is given as blocks. Its integers are spread row by row as
// they are packed: fresh memory for all of them would cost more time than spreading them.
class Factors {
 public:
  Factors(const Matrix& given, Pool& pool) : matrix(given) {
    const BlockFormat* format = given.format;
    if (!format) return;
    const int64_t blocks = given.inputs / format->weights, columns = given.inputs / format->group;
    const int64_t count = given.outputs * columns;
    factors_.reset(new float[static_cast<size_t>(format->has_offset ? 2 * count : count)]);
    float* scale = factors_.get();
    float* offset = format->has_offset ? scale + count : nullptr;
    run_tiles(pool, given, [&](int64_t t) {
      const int64_t o = t * kTile, rows = std::min(kTile, given.outputs - o);
      format->factors(given.blocks + o * blocks * format->bytes, rows * blocks, scale + o * columns,
                      offset ? offset + o * columns : nullptr);
    });
    matrix.bits = format->bits;
    matrix.group = format->group;
    matrix.scale = scale;
    matrix.offset = offset;
  }

  Matrix matrix;

 private:
  std::unique_ptr<float[]> factors_;
};

Part describe(const Matrix& m, int64_t groups) {
  Part part{};
  part.bits = m.values ? 8 : m.bits == 4 ? 4 : least_bits(m);
  part.fine = m.group == 16;
  const int64_t factors = m.values ? 0 : m.outputs * (m.inputs / m.group);
  part.half = !m.values && all_half(m.scale, factors);
  if (m.offset) part.half = all_half(m.offset, factors) && part.half;
  part.offset = m.bits == 4 ? !(part.half && only_centres(m)) : m.offset != nullptr;
  part.outputs = m.outputs;
  part.tiles = (m.outputs + kTile - 1) / kTile;
  const int64_t vectors = (part.fine ? 2 : 1) + (part.offset ? 1 : 0);
  part.group_bytes = integer_bytes(part.bits) + vectors * kTile * (part.half ? 2 : 4);
  part.tile_bytes = (groups * part.group_bytes + 63) / 64 * 64;
  return part;
}

// What is added to an integer to store it unsigned.
int centre(const Part& part) { return part.bits == 8 || part.offset ? 0 : 1 << (part.bits - 1); }

// Where the integer of (output, input) of a tile is: a byte and, below 8 bits, the shift of its
// nibble in it; above 4, the same for its high bits.
struct Place {
  int64_t byte, high_byte;
  int shift, high_shift;
};

Place place(const Part& part, int64_t output, int64_t input) {
  const int64_t line = input % kGroup / 4;
  const int64_t group = input / kGroup * part.group_bytes + output * 4 + input % 4;
  if (part.bits == 8) return {group + line * 64, 0, 0, 0};
  const int64_t planes = group + integer_bytes(4);
  const int shift = line % 2 ? 4 : 0;
  if (part.bits == 6)
    return {group + line / 2 * 64, planes + line / 4 * 64, shift, static_cast<int>(line % 4 * 2)};
  return {group + line / 2 * 64, planes, shift, static_cast<int>(line)};
}

void merge_word(uint8_t* at, uint32_t bits) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  word |= bits;
  std::memcpy(at, &word, 4);
}

int get_integer(const Part& part, const uint8_t* tile, const Place& at) {
  if (part.bits == 8) return static_cast<int8_t>(tile[at.byte]);
  int stored = tile[at.byte] >> at.shift & 15;
  if (part.bits > 4)
    stored |= (tile[at.high_byte] >> at.high_shift & ((1 << (part.bits - 4)) - 1)) << 4;
  return stored - centre(part);
}

void put_factor(const Part& part, uint8_t* tile, int64_t group, int64_t vector, int64_t lane,
                float value) {
  uint8_t* at = tile + group * part.group_bytes + integer_bytes(part.bits);
  if (part.half) {
    const uint16_t half = float_to_half(value);
    std::memcpy(at + (vector * kTile + lane) * 2, &half, 2);
  } else {
    std::memcpy(at + (vector * kTile + lane) * 4, &value, 4);
  }
}

float get_factor(const Part& part, const uint8_t* tile, int64_t group, int64_t vector,
                 int64_t lane) {
  const uint8_t* at = tile + group * part.group_bytes + integer_bytes(part.bits);
  if (part.half) {
    uint16_t half;
    std::memcpy(&half, at + (vector * kTile + lane) * 2, 2);
    return half_to_float(half);
  }
  float value;
  std::memcpy(&value, at + (vector * kTile + lane) * 4, 4);
  return value;
}

void pack_quantized(const Matrix& m, const Part& part, int64_t output, uint8_t* tile,
                    int64_t lane) {
  std::vector<uint8_t> spread;
  const uint8_t* q;
  if (!m.format) {
    q = m.q + output * m.inputs;
  } else {
    const int64_t blocks = m.inputs / m.format->weights;
    spread.resize(static_cast<size_t>(m.inputs));
    m.format->integers(m.blocks + output * blocks * m.format->bytes, blocks, spread.data());
    q = spread.data();
  }
  // Four inputs at a time, one in each byte of a word; above the centre, if stored unsigned.
  const uint32_t below = 0x80 - static_cast<uint32_t>(centre(part));
  uint32_t used = 0;
  for (int64_t i = 0; i < m.inputs; i += 4) {
    uint32_t word;
    std::memcpy(&word, q + i, 4);
    used |= word;
    const Place at = place(part, lane, i);
    if (part.bits == 8) {
      std::memcpy(tile + at.byte, &word, 4);
      continue;
    }
    if (m.bits == 8) word = (word ^ 0x80808080) - below * 0x01010101;
    merge_word(tile + at.byte, (word & 0x0f0f0f0f) << at.shift);
    if (part.bits > 4) merge_word(tile + at.high_byte, (word >> 4 & 0x03030303) << at.high_shift);
  }
  if (m.bits == 4 && used & 0xf0f0f0f0)
    throw invalid_argument("pack: q of output " + to_string(output) +
                           " got a value above 15, expected values in 0..15");
  const int64_t count = m.inputs / m.group, per_group = part.fine ? 2 : 1;
  for (int64_t i = 0; i < count; ++i) {
    put_factor(part, tile, i / per_group, i % per_group, lane, m.scale[output * count + i]);
    if (part.offset)
      put_factor(part, tile, i, 1, lane, m.offset ? m.offset[output * count + i] : 0.0f);
  }
}

void pack_values(const Matrix& m, const Part& part, int64_t output, uint8_t* tile, int64_t lane) {
  const float* values = m.values + output * m.inputs;
  for (int64_t begin = 0; begin < m.inputs; begin += kGroup) {
    const int64_t end = std::min(begin + kGroup, m.inputs);
    float amax = 0.0f;
    for (int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i]))
        throw invalid_argument("pack: weight [" + to_string(output) + ", " + to_string(i) +
                               "] is not finite, got " + to_string(values[i]));
      amax = std::max(amax, std::fabs(values[i]));
    }
    const float scale = amax / 127.0f;
    put_factor(part, tile, begin / kGroup, 0, lane, scale);
    for (int64_t i = begin; i < end; ++i) {
      const float q = scale > 0.0f ? std::nearbyint(values[i] / scale) : 0.0f;
      tile[place(part, lane, i).byte] =
          static_cast<uint8_t>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
    }
  }
}

}  // namespace

Linear::Linear(const std::vector<Matrix>& matrices, const float* bias_values, Arena& arena,
               Pool& pool) {
  if (matrices.empty()) throw invalid_argument("pack: needs at least one matrix, got none");
  inputs = matrices[0].inputs;
  groups = (inputs + kGroup - 1) / kGroup;
  for (const Matrix& given : matrices) {
    const Factors factors(given, pool);
    const Matrix& m = factors.matrix;
    check(m, inputs);
    Part part = describe(m, groups);
    part.first_output = outputs;
    part.first_tile = tiles;
    const int64_t bytes = part.tiles * part.tile_bytes;
    uint8_t* data = memory_.emplace_back(arena.take(static_cast<size_t>(bytes))).data;
    run_tiles(pool, m, [&](int64_t t) {
      uint8_t* tile = data + t * part.tile_bytes;
      const int64_t first = t * kTile, end = std::min(first + kTile, m.outputs);
      for (int64_t o = first; o < end; ++o)
        (m.values ? pack_values : pack_quantized)(m, part, o, tile, o - first);
    });
    part.data = data;
    parts.push_back(part);
    outputs += part.outputs;
    tiles += part.tiles;
    nbytes += bytes;
  }
  if (bias_values) bias.assign(bias_values, bias_values + outputs);
  nbytes += static_cast<int64_t>(bias.size() * sizeof(float));
}

void Linear::row(int64_t output, float factor, float* out) const {
  const Part* part = parts.data();
  while (output >= part->first_output + part->outputs) ++part;
  const int64_t local = output - part->first_output, lane = local % kTile;
  const uint8_t* tile = part->data + local / kTile * part->tile_bytes;
  const int64_t group = part->fine ? 16 : 32;
  for (int64_t begin = 0; begin < inputs; begin += group) {
    const int64_t g = begin / kGroup, half = begin % kGroup / 16;
    const float scale = get_factor(*part, tile, g, half, lane);
    const float offset = part->offset ? get_factor(*part, tile, g, 1, lane) : 0.0f;
    for (int64_t i = begin; i < std::min(begin + group, inputs); ++i) {
      const int q = get_integer(*part, tile, place(*part, lane, i));
      out[i] = factor * (static_cast<float>(q) * scale + offset);
    }
  }
}

int64_t Linear::gate_tiles() const {
  for (const Part& part : parts) {
    const int64_t inside = outputs / 2 - part.first_output;
    if (inside > part.outputs) continue;
    if (inside == part.outputs) return part.first_tile + part.tiles;
    return inside % kTile ? -1 : part.first_tile + inside / kTile;
  }
  return -1;
}

}  // namespace anabranch
