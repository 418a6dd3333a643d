// A batch made ready: checked, and its pages grouped by the rows that read them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"

namespace anabranch {

using Ints = std::span<const int32_t>;

// As `Batch` in backends/base.py.
struct BatchArrays {
  Ints tokens, positions, slots, row_starts, tables, table_starts;
};

class Plan {
 public:
  // Throws std::invalid_argument unless the batch fits a cache of `pages` pages.
  Plan(const BatchArrays& batch, int64_t pages);
  Plan(const Plan&) = delete;  // works point into it

  int64_t rows, pages;
  int64_t positions_begin, positions_end;  // smallest position, largest + 1
  std::vector<int32_t> positions, slots;
  std::vector<Work> works;          // span by span
  std::vector<int64_t> span_works;  // first of each span, then their number

 private:
  void group(const BatchArrays& batch);
  void add(Work work);
  void sort_by_span();

  std::vector<int32_t> tables_;
};

}  // namespace anabranch
