// Tokens from logits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels.h"
#include "memory.h"

namespace anabranch {

// As `Draws` and `Drawn` in backends/base.py.
struct DrawArrays {
  int64_t count, edits;
  const int32_t *row, *given;
  const uint64_t* key;
  const int32_t* position;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int32_t *edit_starts, *edit_token;
  const float *edit_scale, *edit_shift;
  int32_t* token;
  float *logp, *logq, *entropy;
};

// Throws std::invalid_argument unless all values are in range.
void check_draws(const DrawArrays& draws, int64_t rows, int64_t vocab);

// Throws std::invalid_argument, naming the row of logits, unless it is good.
void check_distribution(bool good, int64_t row);

// Decides draws one by one. One per thread; keeps its memory.
class Drawer {
 public:
  // Decide draw `i`. `stats` are those of its row, which has a distribution.
  void draw(const Kernels& kernels, const DrawArrays& draws, int64_t i, const float* logits,
            int64_t vocab, const RowStats& stats);

 private:
  struct Ranked {
    float p;
    int32_t id;
  };

  const float* edit(const DrawArrays& draws, int64_t i, const float* z, int64_t vocab);
  int32_t in_id_order(const float* p, int64_t vocab, const double* block_mass, double target) const;
  std::span<const Ranked> keep(const Kernels& kernels, const float* p, int64_t vocab, double whole,
                               int64_t top_k, double top_p, float min_p);
  const Ranked* rank(const float* p, const int32_t* ids, int64_t count);

  Scratch edited_, p_, block_mass_, ids_, ranked_[2];
};

}  // namespace anabranch
