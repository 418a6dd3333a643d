// Sixteen lanes on every instruction set.
//
// The kernels are written once, against the types below, and compiled once per instruction set
// with ANABRANCH_ISA naming the namespace: `avx512`, `avx2` or `portable`. Every function is
// exactly rounded or exact, and there is no other arithmetic, so all of them give the same bits:
// 16 lanes are one register, two registers, or an array, but never another order of operations.
//
// Kernel files use no templates of the standard library: the linker keeps one copy of each, and it
// might be the one compiled for a processor that this machine is not.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(ANABRANCH_AVX512) || defined(ANABRANCH_AVX2)
#include <immintrin.h>
#else
#include "half.h"
#endif

namespace anabranch::ANABRANCH_ISA {

constexpr int kLanes = 16;

// F32: float lanes. I32: integer lanes. max(a, b) is b where either is NaN.
// Line: 64 bytes of weights, 4 consecutive inputs of each of 16 outputs.
// Quad: 4 consecutive activations, the same for all outputs.
// Pair: two 16-bit integers, the same for all outputs.
// Dot<Bits, Centred>: the exact sum of products of weights with 8-bit activations, line by line, in
// runs of up to kRun lines: each begins with the sums of its activations and ends with a `fold`.
// Weights of 4 to 6 bits are unsigned; centred ones stand for themselves less 2^(Bits - 1). Weights
// of 8 bits are signed.

#if defined(ANABRANCH_AVX512)

constexpr int kTileRows = 8;  // rows whose sums are kept in registers at once
constexpr int kQueryTile = 12;  // queries that meet a key at once

struct F32 { __m512 v; };
struct I32 { __m512i v; };

inline F32 splat(float x) { return {_mm512_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 where_less(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline uint32_t mask_not_less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline F32 keep_range(F32 x, int low, int end, F32 other) {  // lanes [low, end) of x
  const uint32_t mask = ((1u << end) - 1) & ~((1u << low) - 1);
  return {_mm512_mask_blend_ps((__mmask16)mask, other.v, x.v)};
}
inline F32 load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
inline I32 round(F32 x) { return {_mm512_cvtps_epi32(x.v)}; }  // to nearest, ties to even
inline F32 to_float(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline F32 exp2(I32 n) {  // n in [-126, 127]
  const __m512i biased = _mm512_add_epi32(n.v, _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline I32 magnitude(F32 x) {  // bits without the sign: as integers they are in order, NaN last
  return {_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff))};
}
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline uint32_t mask_equal(I32 a, int32_t b) {
  return _mm512_cmpeq_epi32_mask(a.v, _mm512_set1_epi32(b));
}
inline I32 replace_equal(I32 a, int32_t b, I32 other) {  // lanes of a equal to b, by the other's
  return {_mm512_mask_blend_epi32((__mmask16)mask_equal(a, b), a.v, other.v)};
}
inline I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32 operator<<(I32 x, int n) { return {_mm512_sll_epi32(x.v, _mm_cvtsi32_si128(n))}; }
inline I32 operator>>(I32 x, int n) { return {_mm512_sra_epi32(x.v, _mm_cvtsi32_si128(n))}; }
inline I32 operator&(I32 x, int32_t y) { return {_mm512_and_si512(x.v, _mm512_set1_epi32(y))}; }
inline I32 operator|(I32 x, I32 y) { return {_mm512_or_si512(x.v, y.v)}; }
inline I32 operator-(I32 x, int32_t y) { return {_mm512_sub_epi32(x.v, _mm512_set1_epi32(y))}; }
inline I32 multiply_short(I32 x, int16_t y) {  // lanes fit 16 bits
  return {_mm512_madd_epi16(x.v, _mm512_set1_epi32((uint16_t)y))};
}
inline void store(int32_t* p, I32 x) { _mm512_storeu_si512(p, x.v); }
inline void store_bytes(int8_t* p, I32 x) {  // lanes are in [-128, 127]
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x.v));
}

struct Line { __m512i v; };
struct Quad { __m512i v; };

inline Line load_line(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_line(uint8_t* p, Line x) { _mm512_storeu_si512(p, x.v); }
inline Line operator|(Line a, Line b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int Left, int Mask>  // the bits of `Mask` of every byte, after a shift
inline Line shifted(Line x) {
  if constexpr (Left > 0) x.v = _mm512_slli_epi16(x.v, Left);
  if constexpr (Left < 0) x.v = _mm512_srli_epi16(x.v, -Left);
  return {_mm512_and_si512(x.v, _mm512_set1_epi8(Mask))};
}
inline Quad load_quad(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}

struct Pair { __m512i v; };

inline Pair load_pair(const int16_t* p) {
  int32_t both;
  memcpy(&both, p, 4);
  return {_mm512_set1_epi32(both)};
}
inline Pair operator+(Pair x, Pair y) { return {_mm512_add_epi16(x.v, y.v)}; }

// vpdpbusd wants unsigned weights: what they are too large by is taken off in advance.
template <int Bits, bool Centred>
struct Dot {
  using Weights = Line;
  static constexpr int kRun = 8;
  static Weights prepare(Line w) {
    if constexpr (Bits == 8) w.v = _mm512_xor_si512(w.v, _mm512_set1_epi8(-128));
    return w;
  }
  __m512i v = _mm512_setzero_si512();
  void begin(Pair sums) {
    constexpr int16_t kCentre = Bits == 8 || Centred ? 1 << (Bits - 1) : 0;
    v = _mm512_add_epi32(v, _mm512_madd_epi16(sums.v, _mm512_set1_epi16(-kCentre)));
  }
  void add(Weights w, Quad a) { v = _mm512_dpbusd_epi32(v, w.v, a.v); }
  void fold() {}
  I32 sum() const { return {v}; }
};

inline F32 load(const Bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

#elif defined(ANABRANCH_AVX2)

constexpr int kTileRows = 4;
constexpr int kQueryTile = 6;

struct F32 { __m256 a, b; };
struct I32 { __m256i a, b; };

inline F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F32 operator+(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32 operator-(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32 operator*(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32 operator/(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32 fma(F32 x, F32 y, F32 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F32 max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32 min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32 where_less(F32 x, F32 y, F32 yes, F32 no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
inline uint32_t mask_not_less(F32 x, F32 y) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ));
  return (uint32_t)low | (uint32_t)high << 8;
}
inline F32 keep_range(F32 x, int low, int end, F32 other) {  // lanes [low, end) of x
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto half = [&](__m256 kept, __m256 rest, int shift) {
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(low - shift), lanes);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(end - shift), lanes);
    return _mm256_blendv_ps(rest, kept, _mm256_castsi256_ps(_mm256_andnot_si256(below, inside)));
  };
  return {half(x.a, other.a, 0), half(x.b, other.b, 8)};
}
inline F32 load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline I32 round(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F32 to_float(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F32 exp2(I32 n) {  // n in [-126, 127]
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
inline I32 magnitude(F32 x) {  // bits without the sign: as integers they are in order, NaN last
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(x.a), mask),
          _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
}
inline I32 max(I32 x, I32 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline I32 min(I32 x, I32 y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
inline uint32_t mask_equal(I32 x, int32_t y) {
  const __m256i all = _mm256_set1_epi32(y);
  const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.a, all)));
  const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.b, all)));
  return (uint32_t)low | (uint32_t)high << 8;
}
inline I32 replace_equal(I32 x, int32_t y, I32 other) {  // lanes of x equal to y, by the other's
  const __m256i all = _mm256_set1_epi32(y);
  return {_mm256_blendv_epi8(x.a, other.a, _mm256_cmpeq_epi32(x.a, all)),
          _mm256_blendv_epi8(x.b, other.b, _mm256_cmpeq_epi32(x.b, all))};
}
inline I32 load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline I32 operator<<(I32 x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_sll_epi32(x.a, by), _mm256_sll_epi32(x.b, by)};
}
inline I32 operator>>(I32 x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_sra_epi32(x.a, by), _mm256_sra_epi32(x.b, by)};
}
inline I32 operator&(I32 x, int32_t y) {
  const __m256i all = _mm256_set1_epi32(y);
  return {_mm256_and_si256(x.a, all), _mm256_and_si256(x.b, all)};
}
inline I32 operator|(I32 x, I32 y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
inline I32 operator-(I32 x, int32_t y) {
  const __m256i all = _mm256_set1_epi32(y);
  return {_mm256_sub_epi32(x.a, all), _mm256_sub_epi32(x.b, all)};
}
inline I32 multiply_short(I32 x, int16_t y) {  // lanes fit 16 bits
  const __m256i all = _mm256_set1_epi32((uint16_t)y);
  return {_mm256_madd_epi16(x.a, all), _mm256_madd_epi16(x.b, all)};
}
inline void store(int32_t* p, I32 x) {
  _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
inline void store_bytes(int8_t* p, I32 x) {  // lanes are in [-128, 127]
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                _mm256_extracti128_si256(words, 1)));
}

struct Line { __m256i a, b; };
struct Quad { __m256i v; };

inline Line load_line(const uint8_t* p) {
  return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)(p + 32))};
}
inline void store_line(uint8_t* p, Line x) {
  _mm256_store_si256((__m256i*)p, x.a), _mm256_store_si256((__m256i*)(p + 32), x.b);
}
inline Line operator|(Line x, Line y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
template <int Left, int Mask>  // the bits of `Mask` of every byte, after a shift
inline Line shifted(Line x) {
  const __m256i mask = _mm256_set1_epi8(Mask);
  if constexpr (Left > 0) x = {_mm256_slli_epi16(x.a, Left), _mm256_slli_epi16(x.b, Left)};
  if constexpr (Left < 0) x = {_mm256_srli_epi16(x.a, -Left), _mm256_srli_epi16(x.b, -Left)};
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Quad load_quad(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}

// Keeps a running sum in its register: left alone, gcc reorders the additions of a whole group and
// spills every product.
inline void pin(__m256i& x) { asm("" : "+x"(x)); }

struct Pair { __m256i v; };

inline Pair load_pair(const int16_t* p) {
  int32_t both;
  memcpy(&both, p, 4);
  return {_mm256_set1_epi32(both)};
}
inline Pair operator+(Pair x, Pair y) { return {_mm256_add_epi16(x.v, y.v)}; }

// vpmaddubsw adds pairs of products in 16 bits, exactly below 8 bits. Sums of pairs may leave these
// bits on the way if they end inside. Eight pairs of 4-bit weights come to at most 16 * 15 * 127 =
// 30480 of 32767. Of 5-bit weights, eight come to 16 * 16 * 127 = 32512 if they are centred, four to
// 31496 if not; of 6-bit weights, which always are, four to 32512.
template <int Bits, bool Centred>
struct Dot {
  using Weights = Line;
  static_assert(Bits < 6 || Centred);
  static constexpr int kRun = Bits == 6 || (Bits == 5 && !Centred) ? 4 : 8;
  static Weights prepare(Line w) { return w; }
  __m256i a, b, wide_a = _mm256_setzero_si256(), wide_b = wide_a;
  void begin(Pair sums) {
    const __m256i centre = _mm256_set1_epi16(Centred ? -(1 << (Bits - 1)) : 0);
    a = b = _mm256_mullo_epi16(sums.v, centre);
  }
  void add(Weights w, Quad x) {
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x.v));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x.v));
    pin(a), pin(b);
  }
  void fold() {
    const __m256i one = _mm256_set1_epi16(1);
    wide_a = _mm256_add_epi32(wide_a, _mm256_madd_epi16(a, one));
    wide_b = _mm256_add_epi32(wide_b, _mm256_madd_epi16(b, one));
  }
  I32 sum() const { return {wide_a, wide_b}; }
};

// Signed weights: |w|, with its sign moved to the activation, which lies in [-127, 127] and can
// take it. A pair is at most 2 * 128 * 127 = 32512.
template <bool Centred>
struct Dot<8, Centred> {
  struct Weights { __m256i a, b, abs_a, abs_b; };
  static constexpr int kRun = 8;
  static Weights prepare(Line w) { return {w.a, w.b, _mm256_abs_epi8(w.a), _mm256_abs_epi8(w.b)}; }
  __m256i a = _mm256_setzero_si256(), b = a;
  void begin(Pair) {}
  void add(const Weights& w, Quad x) {
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i low = _mm256_maddubs_epi16(w.abs_a, _mm256_sign_epi8(x.v, w.a));
    const __m256i high = _mm256_maddubs_epi16(w.abs_b, _mm256_sign_epi8(x.v, w.b));
    a = _mm256_add_epi32(a, _mm256_madd_epi16(low, one));
    b = _mm256_add_epi32(b, _mm256_madd_epi16(high, one));
    pin(a), pin(b);
  }
  void fold() {}
  I32 sum() const { return {a, b}; }
};

inline F32 load(const Bf16* p) {
  const auto half = [](const Bf16* q) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)q));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  };
  return {half(p), half(p + 8)};
}

#else

constexpr int kTileRows = 4;
constexpr int kQueryTile = 4;

struct F32 { float v[kLanes]; };
struct I32 { int32_t v[kLanes]; };

template <class R, class F>
inline R each(F f) {
  R r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}
inline uint32_t bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
inline float from_bits(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

inline F32 splat(float x) { return each<F32>([=](int) { return x; }); }
inline F32 load(const float* p) { return each<F32>([=](int i) { return p[i]; }); }
inline void store(float* p, F32 x) { memcpy(p, x.v, sizeof x.v); }
inline F32 operator+(F32 a, F32 b) { return each<F32>([&](int i) { return a.v[i] + b.v[i]; }); }
inline F32 operator-(F32 a, F32 b) { return each<F32>([&](int i) { return a.v[i] - b.v[i]; }); }
inline F32 operator*(F32 a, F32 b) { return each<F32>([&](int i) { return a.v[i] * b.v[i]; }); }
inline F32 operator/(F32 a, F32 b) { return each<F32>([&](int i) { return a.v[i] / b.v[i]; }); }
inline F32 fma(F32 a, F32 b, F32 c) {
  return each<F32>([&](int i) { return fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline F32 max(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32 min(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32 where_less(F32 a, F32 b, F32 yes, F32 no) {
  return each<F32>([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
}
inline uint32_t mask_not_less(F32 a, F32 b) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= (uint32_t)(a.v[i] >= b.v[i]) << i;
  return mask;
}
inline F32 keep_range(F32 x, int low, int end, F32 other) {  // lanes [low, end) of x
  return each<F32>([&](int i) { return i >= low && i < end ? x.v[i] : other.v[i]; });
}
inline F32 load_half(const uint16_t* p) {
  return each<F32>([=](int i) { return half_to_float(p[i]); });
}
inline I32 round(F32 x) {  // |x| < 2^22, or NaN with any result; to nearest, ties to even
  const float magic = 0x1.8p23f;
  return each<I32>([&](int i) { return (int32_t)(bits(x.v[i] + magic) - bits(magic)); });
}
inline F32 to_float(I32 x) { return each<F32>([&](int i) { return (float)x.v[i]; }); }
inline F32 exp2(I32 n) {  // n in [-126, 127]
  return each<F32>([&](int i) { return from_bits(((uint32_t)n.v[i] + 127u) << 23); });
}
inline I32 magnitude(F32 x) {  // bits without the sign: as integers they are in order, NaN last
  return each<I32>([&](int i) { return (int32_t)(bits(x.v[i]) & 0x7fffffff); });
}
inline I32 max(I32 a, I32 b) {
  return each<I32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline I32 min(I32 a, I32 b) {
  return each<I32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline uint32_t mask_equal(I32 a, int32_t b) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= (uint32_t)(a.v[i] == b) << i;
  return mask;
}
inline I32 replace_equal(I32 a, int32_t b, I32 other) {  // lanes of a equal to b, by the other's
  return each<I32>([&](int i) { return a.v[i] == b ? other.v[i] : a.v[i]; });
}
inline I32 load(const int32_t* p) {
  return each<I32>([=](int i) { return p[i]; });
}
inline I32 operator<<(I32 x, int n) {
  return each<I32>([&](int i) { return (int32_t)((uint32_t)x.v[i] << n); });
}
inline I32 operator>>(I32 x, int n) {
  return each<I32>([&](int i) { return x.v[i] >> n; });
}
inline I32 operator&(I32 x, int32_t y) {
  return each<I32>([&](int i) { return x.v[i] & y; });
}
inline I32 operator|(I32 x, I32 y) {
  return each<I32>([&](int i) { return x.v[i] | y.v[i]; });
}
inline I32 operator-(I32 x, int32_t y) {
  return each<I32>([&](int i) { return x.v[i] - y; });
}
inline I32 multiply_short(I32 x, int16_t y) {  // lanes fit 16 bits
  return each<I32>([&](int i) { return x.v[i] * y; });
}
inline void store(int32_t* p, I32 x) { memcpy(p, x.v, sizeof x.v); }
inline void store_bytes(int8_t* p, I32 x) {  // lanes are in [-128, 127]
  for (int i = 0; i < kLanes; ++i) p[i] = (int8_t)x.v[i];
}

struct Line { uint8_t v[64]; };
struct Quad { int8_t v[4]; };

inline Line load_line(const uint8_t* p) {
  Line x;
  memcpy(x.v, p, 64);
  return x;
}
inline void store_line(uint8_t* p, const Line& x) { memcpy(p, x.v, 64); }
inline Line operator|(Line x, const Line& y) {
  for (int i = 0; i < 64; ++i) x.v[i] |= y.v[i];
  return x;
}
template <int Left, int Mask>  // the bits of `Mask` of every byte, after a shift
inline Line shifted(Line x) {
  for (uint8_t& byte : x.v) byte = (uint8_t)((Left > 0 ? byte << Left : byte >> -Left) & Mask);
  return x;
}
inline Quad load_quad(const int8_t* p) {
  Quad x;
  memcpy(x.v, p, 4);  // byte by byte, gcc 12's vectorizer reads past the end of a neighbouring row
  return x;
}

struct Pair { int16_t v[2]; };

inline Pair load_pair(const int16_t* p) { return {{p[0], p[1]}}; }
inline Pair operator+(Pair x, Pair y) {
  return {{(int16_t)(x.v[0] + y.v[0]), (int16_t)(x.v[1] + y.v[1])}};
}

template <int Bits, bool Centred>
struct Dot {
  using Weights = Line;
  static constexpr int kRun = 8;
  static Weights prepare(const Line& w) { return w; }
  int32_t v[kLanes] = {};
  void begin(Pair sums) {
    const int32_t centre = Centred && Bits < 8 ? 1 << (Bits - 1) : 0;
    for (int32_t& lane : v) lane -= centre * (sums.v[0] + sums.v[1]);
  }
  void add(const Line& w, Quad a) {
    for (int o = 0; o < kLanes; ++o)
      for (int i = 0; i < 4; ++i)
        v[o] += (Bits == 8 ? (int8_t)w.v[4 * o + i] : w.v[4 * o + i]) * a.v[i];
  }
  void fold() {}
  I32 sum() const { return each<I32>([&](int i) { return v[i]; }); }
};

inline F32 load(const Bf16* p) {
  return each<F32>([=](int i) { return from_bits((uint32_t)p[i].bits << 16); });
}

#endif

// The first `count` lanes; the others are zero, or left alone.
inline F32 load_first(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_first(float* p, F32 x, int64_t count) {
  if (count >= kLanes) return store(p, x);
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// Lanes are folded in halves: i with i + 8, then i + 4, i + 2, i + 1.
#if defined(ANABRANCH_AVX512) || defined(ANABRANCH_AVX2)

#if defined(ANABRANCH_AVX512)
inline __m256 lower(F32 x) { return _mm512_castps512_ps256(x.v); }
inline __m256 upper(F32 x) { return _mm512_extractf32x8_ps(x.v, 1); }
inline __m256i lower(I32 x) { return _mm512_castsi512_si256(x.v); }
inline __m256i upper(I32 x) { return _mm512_extracti32x8_epi32(x.v, 1); }
#else
inline __m256 lower(F32 x) { return x.a; }
inline __m256 upper(F32 x) { return x.b; }
inline __m256i lower(I32 x) { return x.a; }
inline __m256i upper(I32 x) { return x.b; }
#endif

template <class Op>
inline float fold(__m256 eight, Op op) {
  __m128 x = op(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  x = op(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(op(x, _mm_movehdup_ps(x)));
}
inline float sum(F32 x) {
  return fold(_mm256_add_ps(lower(x), upper(x)),
              [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}
inline float maximum(F32 x) {
  return fold(_mm256_max_ps(lower(x), upper(x)),
              [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}
template <class Op>
inline int32_t fold(__m128i x, Op op) {
  x = op(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(op(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline void pair_sums(I32 x, int16_t* out) {  // of lanes 0 and 1 of every four; of 2 and 3
  const __m256i y = _mm256_add_epi32(lower(x), upper(x));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
  const __m128i two = _mm_hadd_epi32(four, four);
  out[0] = (int16_t)_mm_cvtsi128_si32(two);
  out[1] = (int16_t)_mm_extract_epi32(two, 1);
}
inline int32_t maximum(I32 x) {
  const __m256i y = _mm256_max_epi32(lower(x), upper(x));
  return fold(_mm_max_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)),
              [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
}

#else

template <class T, class Op>
inline T fold(T (&lanes)[kLanes], Op op) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = op(lanes[i], lanes[i + half]);
  return lanes[0];
}
inline float sum(F32 x) {
  return fold(x.v, [](float a, float b) { return a + b; });
}
inline float maximum(F32 x) {
  return fold(x.v, [](float a, float b) { return a > b ? a : b; });
}
inline void pair_sums(I32 x, int16_t* out) {  // of lanes 0 and 1 of every four; of 2 and 3
  int32_t sums[2] = {};
  for (int i = 0; i < kLanes; ++i) sums[i % 4 / 2] += x.v[i];
  out[0] = (int16_t)sums[0], out[1] = (int16_t)sums[1];
}
inline int32_t maximum(I32 x) {
  return fold(x.v, [](int32_t a, int32_t b) { return a > b ? a : b; });
}

#endif

// e^x within 2 units in the last place; 0 below -87.33, infinity above 88.37, NaN for NaN.
// e^x = 2^n e^r with |r| <= ln(2)/2; the polynomial is a minimax fit of (e^r - 1 - r) / r^2.
inline F32 exp(F32 x) {
  const F32 low = splat(-87.33f), high = splat(88.37f);
  const F32 y = min(high, max(low, x));  // in this order, NaN stays NaN
  const I32 n = round(y * splat(0x1.715476p+0f));
  F32 r = fma(to_float(n), splat(-0.693359375f), y);
  r = fma(to_float(n), splat(0x1.bd0106p-13f), r);
  F32 p = splat(0x1.6a23cep-10f);
  p = fma(p, r, splat(0x1.123a2p-7f));
  p = fma(p, r, splat(0x1.5558f2p-5f));
  p = fma(p, r, splat(0x1.555492p-3f));
  p = fma(p, r, splat(0x1.fffffcp-2f));
  F32 e = (fma(p, r * r, r) + splat(1.0f)) * exp2(n);
  e = where_less(x, low, splat(0.0f), e);
  return where_less(high, x, splat(__builtin_inff()), e);
}

// 2^x for x <= 0 within 3 units in the last place; 0 below -126, NaN for NaN. 2^x = 2^n 2^r with
// |r| <= 1/2; the polynomial is a minimax fit of (2^r - 1) / r.
inline F32 power_of_2(F32 x) {
  const F32 low = splat(-126.0f), y = max(low, x);
  const I32 n = round(y);
  const F32 r = y - to_float(n);
  F32 p = splat(0x1.5bba14p-10f);
  p = fma(p, r, splat(0x1.3cea88p-7f));
  p = fma(p, r, splat(0x1.c6b752p-5f));
  p = fma(p, r, splat(0x1.ebf9bcp-3f));
  p = fma(p, r, splat(0x1.62e42ap-1f));
  return where_less(x, low, splat(0.0f), fma(p, r, splat(1.0f)) * exp2(n));
}

inline F32 sigmoid(F32 x) { return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x)); }
inline F32 silu(F32 x) { return x * sigmoid(x); }

// 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3) is x sigmoid(2u).
inline F32 gelu_tanh(F32 x) {
  const F32 inner = fma(x * x, splat(0.044715f), splat(1.0f));
  return x * sigmoid(splat(1.5957691216f) * x * inner);
}

}  // namespace anabranch::ANABRANCH_ISA
