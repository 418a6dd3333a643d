#include "draw.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "philox.h"

namespace anabranch {
namespace {

// Natural logarithm of a positive, finite, normal x, in operations that every processor rounds
// alike: x = 2^n m with m near 1, log m = 2 artanh((m - 1) / (m + 1)).
double logarithm(double x) {
  int n;
  double m = std::frexp(x, &n);  // in [1/2, 1)
  if (m < 0.70710678118654752) m *= 2, --n;
  const double s = (m - 1) / (m + 1), square = s * s;
  double series = 0;
  for (int k = 23; k >= 1; k -= 2) series = series * square + 1.0 / k;
  return 2 * s * series + n * 0.69314718055994531;
}

struct Field {
  const char* name;
  int64_t draw;
};

template <class T>
void require(bool good, Field field, T got, const std::string& expected) {
  if (!good)
    throw std::invalid_argument("draw: " + std::string(field.name) + "[" +
                                std::to_string(field.draw) + "] got " + std::to_string(got) +
                                ", expected " + expected);
}

template <class T>
void check_range(const char* name, const T* values, int64_t count, int64_t low, int64_t end) {
  const auto expected = std::string("[") + std::to_string(low) + ", " + std::to_string(end) + ")";
  for (int64_t i = 0; i < count; ++i)
    if (!(values[i] >= low && values[i] < end)) require(false, {name, i}, values[i], expected);
}

void check_share(const char* name, const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!(values[i] >= 0 && values[i] <= 1)) require(false, {name, i}, values[i], "[0, 1]");
}

}  // namespace

void check_distribution(bool good, int64_t row) {
  if (!good)
    throw std::invalid_argument("draw: logits row " + std::to_string(row) +
                                " got NaN, inf or only -inf, expected at least one finite logit");
}

void check_draws(const DrawArrays& d, int64_t rows, int64_t vocab) {
  constexpr int64_t kAny = int64_t{1} << 31;
  check_range("row", d.row, d.count, 0, rows);
  check_range("given", d.given, d.count, -1, vocab);
  check_range("position", d.position, d.count, 0, kAny);
  check_range("top_k", d.top_k, d.count, 0, kAny);
  check_range("edit_token", d.edit_token, d.edits, 0, vocab);
  check_share("top_p", d.top_p, d.count);
  check_share("min_p", d.min_p, d.count);
  for (int64_t i = 0; i < d.count; ++i) {
    require(std::isfinite(d.temperature[i]) && d.temperature[i] >= 0, {"temperature", i},
            d.temperature[i], "a finite number from 0");
    require(d.edit_starts[i] <= d.edit_starts[i + 1], {"edit_starts", i + 1}, d.edit_starts[i + 1],
            "offsets that never fall");
  }
  require(d.edit_starts[0] == 0, {"edit_starts", 0}, d.edit_starts[0], "0");
  require(d.edit_starts[d.count] == d.edits, {"edit_starts", d.count}, d.edit_starts[d.count],
          std::to_string(d.edits) + ", the number of edits");
  for (int64_t e = 0; e < d.edits; ++e) {
    require(std::isnormal(d.edit_scale[e]) && d.edit_scale[e] > 0, {"edit_scale", e},
            d.edit_scale[e], "a positive, finite number");
    require(d.edit_shift[e] < HUGE_VALF, {"edit_shift", e}, d.edit_shift[e],
            "a number below infinity");
  }
}

void Drawer::draw(const Kernels& kernels, const DrawArrays& d, int64_t i, const float* logits,
                  int64_t vocab, const RowStats& stats) {
  const double log_mass = logarithm(stats.mass);
  const auto model = [&](int32_t token) {
    return static_cast<float>(static_cast<double>(logits[token]) - stats.top - log_mass);
  };
  d.entropy[i] = static_cast<float>(log_mass - stats.moment / stats.mass);
  d.logq[i] = 0.0f;
  d.token[i] = d.given[i];
  if (d.given[i] >= 0) {
    d.logp[i] = model(d.given[i]);
    return;
  }

  const float* z = edit(d, i, logits, vocab);
  const float top = z == logits ? stats.top : kernels.row_stats(z, vocab).top;
  check_distribution(std::fabs(top) < HUGE_VALF, d.row[i]);
  const float temperature = d.temperature[i];
  if (temperature == 0) {
    d.token[i] = static_cast<int32_t>(std::find(z, z + vocab, top) - z);
  } else {
    auto* p = p_.get<float>(vocab);
    auto* block_mass = block_mass_.get<double>((vocab + kMassBlock - 1) / kMassBlock);
    const double whole = kernels.tempered(z, vocab, top, temperature, p, block_mass);
    const double u = uniform(d.key[i], d.position[i]);
    double mass = whole;
    if (d.top_k[i] == 0 && d.top_p[i] == 1 && d.min_p[i] == 0) {
      d.token[i] = in_id_order(p, vocab, block_mass, u * whole);
    } else {
      const auto kept = keep(kernels, p, vocab, whole, d.top_k[i], d.top_p[i], d.min_p[i]);
      mass = 0;
      for (const Ranked& r : kept) mass += r.p;
      double sum = 0;
      size_t k = 0;
      while (k + 1 < kept.size() && (sum += kept[k].p) <= u * mass) ++k;
      d.token[i] = kept[k].id;
    }
    const float t = (z[d.token[i]] - top) / temperature;
    d.logq[i] = static_cast<float>(t - logarithm(mass));
  }
  d.logp[i] = model(d.token[i]);
}

// The row with the draw's edits, in order; the row itself if there are none.
const float* Drawer::edit(const DrawArrays& d, int64_t i, const float* z, int64_t vocab) {
  if (d.edit_starts[i] == d.edit_starts[i + 1]) return z;
  auto* edited = edited_.get<float>(vocab);
  std::memcpy(edited, z, vocab * sizeof *z);
  for (int32_t e = d.edit_starts[i]; e < d.edit_starts[i + 1]; ++e) {
    float& logit = edited[d.edit_token[e]];
    logit = (logit > 0 ? logit / d.edit_scale[e] : logit * d.edit_scale[e]) + d.edit_shift[e];
  }
  return edited;
}

// The first token whose probability, added to those of all smaller ids, exceeds the target.
int32_t Drawer::in_id_order(const float* p, int64_t vocab, const double* block_mass,
                            double target) const {
  double sum = 0;
  int64_t block = 0;
  for (; (block + 1) * kMassBlock < vocab && sum + block_mass[block] <= target; ++block)
    sum += block_mass[block];
  int64_t last = 0;  // the last possible token, lest the block's sums round apart
  const int64_t end = std::min((block + 1) * kMassBlock, vocab);
  for (int64_t id = block * kMassBlock; id < end; ++id) {
    if (p[id] > 0) last = id;
    sum += p[id];
    if (sum > target) return static_cast<int32_t>(id);
  }
  return static_cast<int32_t>(last);
}

// The tokens that survive truncation, likeliest first.
//
// Every filter keeps a prefix of that order, so only the likeliest tokens are collected and sorted:
// those above a bound that falls until the prefix lies above it.
std::span<const Drawer::Ranked> Drawer::keep(const Kernels& kernels, const float* p, int64_t vocab,
                                             double whole, int64_t top_k, double top_p,
                                             float min_p) {
  auto* ids = ids_.get<int32_t>(vocab);
  const int64_t most = top_k ? std::min(top_k, vocab) : vocab;
  // Below this, nothing matters: min-p drops it (the likeliest token has p = 1), unless top-p needs
  // the mass of all top-k.
  const float floor = top_k && top_p < 1 ? 0.0f : min_p;
  float bound = top_k || top_p < 1 ? std::max(1.0f / 16, floor) : floor;
  int64_t count;
  for (;; bound = std::max(bound > 1e-30f ? bound / 8 : 0.0f, floor)) {
    count = kernels.at_least(p, vocab, bound, ids);
    if (bound <= floor || (top_k && count >= most)) break;
    double mass = 0;
    for (int64_t k = 0; k < count; ++k) mass += p[ids[k]];
    if (!top_k && mass >= top_p * whole) break;
  }

  const Ranked* ranked = rank(p, ids, count);
  count = std::min(count, most);
  if (top_p < 1) {
    double total = top_k ? 0.0 : whole, sum = 0;
    for (int64_t k = 0; top_k && k < count; ++k) total += ranked[k].p;
    int64_t kept = 0;
    while (kept < count && (kept == 0 || sum < top_p * total)) sum += ranked[kept++].p;
    count = kept;
  }
  while (count > 1 && ranked[count - 1].p < min_p) --count;
  return {ranked, static_cast<size_t>(count)};
}

// Sort tokens by falling probability. Radix sort is stable: ties stay in the order of the ids.
const Drawer::Ranked* Drawer::rank(const float* p, const int32_t* ids, int64_t count) {
  constexpr int kBits = 10, kDigits = 3;  // p <= 1, so its bits as an integer have 30 digits
  auto* from = ranked_[0].get<Ranked>(count);
  auto* to = ranked_[1].get<Ranked>(count);
  for (int64_t k = 0; k < count; ++k) from[k] = {p[ids[k]], ids[k]};
  for (int digit = 0; digit < kDigits; ++digit) {
    const auto bucket = [digit](const Ranked& r) {
      return ~(std::bit_cast<uint32_t>(r.p) >> digit * kBits) & ((1 << kBits) - 1);
    };
    std::array<int64_t, 1 << kBits> next{};
    for (int64_t k = 0; k < count; ++k) ++next[bucket(from[k])];
    std::exclusive_scan(next.begin(), next.end(), next.begin(), int64_t{0});
    for (int64_t k = 0; k < count; ++k) to[next[bucket(from[k])]++] = from[k];
    std::swap(from, to);
  }
  return from;
}

}  // namespace anabranch
