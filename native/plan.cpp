#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace anabranch {
namespace {

constexpr int64_t kSpanPages = kSpan / kSlots;

void require(bool good, const char* name, int64_t got, const std::string& expected) {
  if (!good)
    throw std::invalid_argument(std::string("plan: ") + name + " got " + std::to_string(got) +
                                ", expected " + expected);
}

std::string range(int64_t low, int64_t end) {
  return "a value in [" + std::to_string(low) + ", " + std::to_string(end) + ")";
}

void check_starts(const char* name, Ints starts, int64_t sequences, int64_t end) {
  require(std::ssize(starts) == sequences + 1, name, std::ssize(starts),
          std::to_string(sequences + 1) + " entries");
  require(starts.front() == 0, name, starts.front(), "0 as its first entry");
  require(starts.back() == end, name, starts.back(), std::to_string(end) + " as its last entry");
  for (int64_t i = 0; i < sequences; ++i)
    require(starts[i] < starts[i + 1], name, starts[i + 1], "rising entries");
}

void check_sequence(const BatchArrays& b, int64_t row, int64_t row_end, Ints table) {
  for (int64_t r = row; r < row_end; ++r) {
    const int64_t position = b.positions[r], slot = b.slots[r];
    const auto held = std::ssize(table) * kSlots;
    require(position >= 0 && position < held, "position", position, range(0, held));
    require(r == row || position == b.positions[r - 1] + 1, "position", position,
            "consecutive positions inside a sequence");
    const int64_t own = table[position / kSlots] * kSlots + position % kSlots;
    require(slot == -1 || slot == own, "slot", slot, "-1 or " + std::to_string(own));
  }
}

}  // namespace

Plan::Plan(const BatchArrays& b, int64_t pages)
    : rows(std::ssize(b.tokens)), pages(pages), positions_begin(0), positions_end(0),
      positions(b.positions.begin(), b.positions.end()), slots(b.slots.begin(), b.slots.end()),
      tables_(b.tables.begin(), b.tables.end()) {
  const auto sequences = std::max<int64_t>(std::ssize(b.row_starts) - 1, 0);
  const auto expected = std::to_string(rows) + " entries, as tokens";
  require(std::ssize(b.positions) == rows, "positions", std::ssize(b.positions), expected);
  require(std::ssize(b.slots) == rows, "slots", std::ssize(b.slots), expected);
  check_starts("row_starts", b.row_starts, sequences, rows);
  check_starts("table_starts", b.table_starts, sequences, std::ssize(b.tables));
  for (const int32_t page : b.tables)
    require(page >= 0 && page < pages, "page", page, range(0, pages));
  for (int64_t s = 0; s < sequences; ++s)
    check_sequence(b, b.row_starts[s], b.row_starts[s + 1],
                   b.tables.subspan(b.table_starts[s], b.table_starts[s + 1] - b.table_starts[s]));
  if (rows) {
    const auto [least, most] = std::minmax_element(positions.begin(), positions.end());
    positions_begin = *least, positions_end = *most + 1;
  }

  std::vector<int32_t> stored = slots;
  std::sort(stored.begin(), stored.end());
  for (size_t i = 1; i < stored.size(); ++i)
    require(stored[i] < 0 || stored[i] != stored[i - 1], "slot", stored[i], "each slot once");
  group(b);
  sort_by_span();
}

// Sequences [begin, end) agree on all columns before `column`. The run of columns that they go on
// agreeing on is one Work per span; behind it the range falls apart into ranges of neighbours that
// agree on the next column, and so on: the tree of prefixes, parents before children.
void Plan::group(const BatchArrays& b) {
  struct Range { int64_t begin, end, column; };
  const auto sequences = std::ssize(b.row_starts) - 1;
  const auto table = [&](int64_t s) { return tables_.data() + b.table_starts[s]; };
  const auto needed = [&](int64_t s) {  // pages up to the last row of sequence s
    return b.positions[b.row_starts[s + 1] - 1] / kSlots + 1;
  };
  std::vector<int64_t> shared(sequences, 0);  // columns that s and s + 1 agree on
  for (int64_t s = 0; s + 1 < sequences; ++s) {
    const int64_t most = std::min(needed(s), needed(s + 1));
    shared[s] = std::mismatch(table(s), table(s) + most, table(s + 1)).first - table(s);
  }
  std::vector<Range> ranges;
  const auto push = [&](int64_t begin, int64_t end, int64_t column) {
    const size_t first = ranges.size();
    for (int64_t s = begin; s < end;) {
      int64_t next = s + 1;
      while (next < end && shared[next - 1] > column) ++next;
      if (needed(s) > column) ranges.push_back({s, next, column});
      s = next;
    }
    std::reverse(ranges.begin() + static_cast<int64_t>(first), ranges.end());
  };
  push(0, sequences, 0);
  while (!ranges.empty()) {
    const Range r = ranges.back();
    ranges.pop_back();
    int64_t end = needed(r.begin);
    for (int64_t s = r.begin; s + 1 < r.end; ++s) end = std::min(end, shared[s]);
    add({b.row_starts[r.begin], b.row_starts[r.end], r.column, end - r.column,
         table(r.begin) + r.column});
    push(r.begin, r.end, end);
  }
}

// Cut at the borders of spans.
void Plan::add(Work work) {
  while (work.count > 0) {
    const int64_t first = std::min(work.count, kSpanPages - work.grid % kSpanPages);
    works.push_back({work.row_begin, work.row_end, work.grid, first, work.pages});
    work.grid += first, work.count -= first, work.pages += first;
  }
}

// Parents stay before children: their pages come first.
void Plan::sort_by_span() {
  const auto span = [](const Work& work) { return work.grid / kSpanPages; };
  std::stable_sort(works.begin(), works.end(),
                   [&](const Work& a, const Work& b) { return span(a) < span(b); });
  for (size_t w = 0; w < works.size(); ++w)
    while (std::ssize(span_works) <= span(works[w])) span_works.push_back(static_cast<int64_t>(w));
  span_works.push_back(std::ssize(works));
}

}  // namespace anabranch
