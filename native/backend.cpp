#include "backend.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace anabranch {
namespace {

using std::to_string;

void require(bool good, const char* name, int64_t got, const std::string& expected) {
  if (!good)
    throw std::invalid_argument(std::string(name) + ": got " + to_string(got) + ", expected " +
                                expected);
}

void require_equal(const char* name, int64_t got, int64_t expected) {
  require(got == expected, name, got, to_string(expected));
}

void require_index(const char* name, int64_t got, int64_t end) {
  if (got < 0 || got >= end)
    throw std::out_of_range(std::string(name) + ": got " + to_string(got) +
                            ", expected an index in [0, " + to_string(end) + ")");
}

void check_norm(const char* name, const std::optional<Norm>& norm, int64_t size) {
  if (norm) require_equal(name, norm->weight.size, size);
}

const float* weight_of(const std::optional<Norm>& norm) {
  return norm ? norm->weight.data : nullptr;
}

float eps_of(const std::optional<Norm>& norm) { return norm ? norm->eps : 0.0f; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Has the backend to itself, and adds the time that it had it.
class Turn {
 public:
  Turn(std::recursive_mutex& mutex, double& seconds) : lock_(mutex), seconds_(seconds) {}
  ~Turn() { seconds_ += std::chrono::duration<double>(Clock::now() - began_).count(); }

 private:
  using Clock = std::chrono::steady_clock;

  std::lock_guard<std::recursive_mutex> lock_;
  double& seconds_;
  Clock::time_point began_ = Clock::now();
};

struct Choice {
  const Kernels* kernels;
  bool present;
};

std::vector<Choice> choices() {
  return {
#ifdef ANABRANCH_X86
      {&avx512::kKernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni")},
      {&avx2::kKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&portable::kKernels, true},
  };
}

const Kernels& choose(const std::string& isa) {
  std::string known;
  for (const Choice& choice : choices()) {
    if (!choice.present) continue;
    if (isa.empty() || isa == choice.kernels->isa) return *choice.kernels;
    known += (known.empty() ? "" : ", ") + std::string(choice.kernels->isa);
  }
  throw std::invalid_argument("isa: got " + isa + ", expected what this processor has: " + known);
}

// Queries that meet a span together: enough to use each key many times from the first-level cache,
// few enough that they and their scores stay in the second.
constexpr int64_t kMostQueries = 48, kFewQueries = 12;

// Sums of spans that are kept at a time; with more, rows go in rounds.
constexpr int64_t kSumsBytes = int64_t{16} << 20;

// What `LinearJob` wants of one block of rows; `masks[rows, group blocks]` say which groups.
void collect_apart(const Group* x, const uint32_t* masks, int64_t groups, int64_t rows, Apart* out,
                   int32_t* starts) {
  const int64_t blocks = group_blocks(groups);
  Apart* next = out;
  for (int64_t block = 0; block < blocks; ++block) {
    starts[block] = static_cast<int32_t>(next - out);
    uint32_t any = 0;
    for (int64_t r = 0; r < rows; ++r) any |= masks[r * blocks + block];
    for (; any; any &= any - 1) {
      const int bit = std::countr_zero(any);
      const int64_t g = block * kGroupBlock + bit;
      Apart* first = next;
      for (int64_t r = 0; r < rows; ++r) {
        if (!(masks[r * blocks + block] >> bit & 1)) continue;
        const Group& group = x[r * groups + g];
        *next++ = {static_cast<int32_t>(r), static_cast<int32_t>(g), group.apart_at,
                   static_cast<float>(group.apart) * group.scale};
      }
      std::sort(first, next, [](const Apart& a, const Apart& b) { return a.at < b.at; });
    }
  }
  starts[blocks] = static_cast<int32_t>(next - out);
}

}  // namespace

Cache::Cache(int64_t layers, int64_t kv_heads, int64_t dim, int64_t pages, Storage storage)
    : layers(layers), kv_heads(kv_heads), dim(dim), pages(pages), storage(storage) {
  constexpr int64_t kMost = int64_t{1} << 20;
  require(layers >= 1 && layers <= kMost, "layers", layers, "a count from 1");
  require(kv_heads >= 1 && kv_heads <= kMost, "kv_heads", kv_heads, "a count from 1");
  require(dim >= 2 && dim <= kMost && dim % 2 == 0, "dim", dim, "an even number from 2");
  const int64_t most_pages = std::numeric_limits<int32_t>::max() / kSlots;  // slots are int32
  require(pages >= 1 && pages <= most_pages, "pages", pages, "1.." + to_string(most_pages));
  dim_padded = divide_up(dim, kTile) * kTile;
  const double size = static_cast<double>(layers) * static_cast<double>(kv_heads) *
                        static_cast<double>(dim + dim_padded) * kSlots * static_cast<double>(pages);
  if (size > 0x1p56) throw std::bad_alloc();
  layer_size = kv_heads * (dim + dim_padded) * kSlots;
  memory_ = Memory(static_cast<size_t>(page_size() * pages * number_bytes()));
  nbytes = static_cast<int64_t>(memory_.bytes());
}

Backend::Backend(int threads, const std::string& isa) : kernels_(choose(isa)) {
  require(threads >= 1 && threads <= 4096, "threads", threads, "1..4096");
  pool_ = std::make_unique<Pool>(threads);
  drawers_.resize(threads);
}

Backend::~Backend() {
  if (pool_ && pool_->orphaned()) (void)pool_.release();
}

std::vector<std::string> Backend::isas() {
  std::vector<std::string> names;
  for (const Choice& choice : choices())
    if (choice.present) names.emplace_back(choice.kernels->isa);
  return names;
}

std::unique_ptr<Linear> Backend::pack(const std::vector<Matrix>& matrices, const float* bias) {
  std::lock_guard lock(mutex_);
  return std::make_unique<Linear>(matrices, bias, weights_, *pool_);
}

void Backend::embed(const Linear& table, Vector<const int32_t> tokens, float scale,
                    Rows<float> out) {
  require_equal("out rows", out.rows, tokens.size);
  require_equal("out columns", out.columns, table.inputs);
  for (int64_t r = 0; r < tokens.size; ++r) require_index("token", tokens.data[r], table.outputs);
  const Turn turn(mutex_, seconds_.embed);
  pool_->run(out.rows, [&](int64_t r, int) {
    table.row(tokens.data[r], scale, out.data + r * out.columns);
  });
}

void Backend::linear(Rows<const float> x, const Linear& weight, Rows<float> out,
                     const LinearOptions& options) {
  const bool gated = options.activation != Activation::none;
  require_equal("x columns", x.columns, weight.inputs);
  require_equal("out rows", out.rows, x.rows);
  require(!gated || weight.outputs % 2 == 0, "outputs of gate and up", weight.outputs,
          "an even number");
  const int64_t outputs = gated ? weight.outputs / 2 : weight.outputs;
  require_equal("out columns", out.columns, outputs);
  check_norm("norm weight", options.norm, weight.inputs);
  check_norm("post_norm weight", options.post_norm, outputs);
  const int64_t gate_tiles = gated ? weight.gate_tiles() : 0;
  require(gate_tiles >= 0, "outputs of the gate", outputs,
          "a multiple of 16, or gate and up packed as two parts");
  if (x.rows == 0) return;

  const Turn turn(mutex_, seconds_.linear);
  const int64_t rows = x.rows, groups = weight.groups;
  auto* quantized = quantized_.get<Group>(rows * groups);
  const int64_t blocks = group_blocks(groups), row_blocks = divide_up(rows, kRowBlock);
  auto* masks = masks_.get<uint32_t>(rows * blocks);
  auto* apart = apart_.get<Apart>(rows * groups);
  auto* apart_starts = apart_starts_.get<int32_t>(row_blocks * (blocks + 1));
  const auto quantize = [&](int64_t r) {
    kernels_.quantize(x.data + r * x.columns, x.columns, weight_of(options.norm),
                      eps_of(options.norm), groups, quantized + r * groups,
                      masks + r * blocks);
  };
  // A few rows are quantized before the other threads would have heard of it.
  if (rows < 4) for (int64_t r = 0; r < rows; ++r) quantize(r);
  else pool_->run(rows, [&](int64_t r, int) { quantize(r); });
  pool_->run(row_blocks, [&](int64_t block, int) {
    const int64_t r = block * kRowBlock;
    collect_apart(quantized + r * groups, masks + r * blocks, groups, std::min(rows - r, kRowBlock),
                  apart + r * groups, apart_starts + block * (blocks + 1));
  });

  const bool direct = !options.post_norm;
  float* target = direct ? out.data : outputs_.get<float>(rows * outputs);
  const LinearJob job = {
      .parts = weight.parts.data(),
      .groups = groups,
      .bias = weight.bias.empty() ? nullptr : weight.bias.data(),
      .x = quantized,
      .apart = apart,
      .apart_starts = apart_starts,
      .activation = options.activation,
      .gate_tiles = gate_tiles,
      .add = direct && options.add,
      .out = target,
      .out_stride = outputs,
  };
  // Chunks of some microseconds: 32 KiB of weights for one row, and as many products for more. But
  // at least eight per thread where that is possible.
  const int64_t tiles = gated ? gate_tiles : weight.tiles;
  const int64_t tile_bytes = weight.parts[0].tile_bytes * (gated ? 2 : 1);
  const int64_t fair = divide_up(tiles * row_blocks, 8 * threads());
  const int64_t cost = tile_bytes * std::min(rows, kRowBlock);
  const int64_t step = std::clamp<int64_t>(divide_up(32768, cost), 1, fair);
  pool_->run(divide_up(tiles, step) * row_blocks, [&](int64_t chunk, int) {
    const int64_t tile = chunk / row_blocks * step, row = chunk % row_blocks * kRowBlock;
    kernels_.linear(job, tile, std::min(tile + step, tiles), row, std::min(row + kRowBlock, rows));
  });
  if (direct) return;
  pool_->run(rows, [&](int64_t r, int) {
    kernels_.norm(target + r * outputs, outputs, weight_of(options.post_norm),
                  eps_of(options.post_norm), options.add, out.data + r * outputs);
  });
}

namespace {

// What attention's operations share. Returns the number of query heads.
int64_t check_heads(int64_t rows, int64_t columns, const Cache& cache, int64_t layer,
                    const Plan& plan) {
  require_index("layer", layer, cache.layers);
  require_equal("pages of the cache planned for", plan.pages, cache.pages);
  require_equal("q rows", rows, plan.rows);
  const int64_t heads = columns / cache.dim;
  require(heads > 0 && columns % cache.dim == 0, "q columns", columns,
          "whole heads of " + to_string(cache.dim));
  require(heads % cache.kv_heads == 0, "heads", heads,
          "a multiple of " + to_string(cache.kv_heads) + " kv_heads");
  return heads;
}

}  // namespace

void Backend::rope_store(Rows<const float> qkv, Cache& cache, int64_t layer, const Plan& plan,
                         const Rope& rope, Rows<float> q, const std::optional<Norm>& q_norm,
                         const std::optional<Norm>& k_norm) {
  const auto& [cos, sin] = rope;
  const int64_t heads = check_heads(q.rows, q.columns, cache, layer, plan);
  require_equal("qkv rows", qkv.rows, plan.rows);
  require_equal("qkv columns", qkv.columns, (heads + 2 * cache.kv_heads) * cache.dim);
  require_equal("cos columns", cos.columns, cache.dim / 2);
  require_equal("sin columns", sin.columns, cache.dim / 2);
  require_equal("sin rows", sin.rows, cos.rows);
  if (plan.rows) require_index("position in the rope table", plan.positions_end - 1, cos.rows);
  check_norm("q_norm weight", q_norm, cache.dim);
  check_norm("k_norm weight", k_norm, cache.dim);

  const Turn turn(mutex_, seconds_.rope_store);
  const RopeJob job = {
      .qkv = qkv.data,
      .cos = cos.data,
      .sin = sin.data,
      .q_norm = weight_of(q_norm),
      .k_norm = weight_of(k_norm),
      .q_eps = eps_of(q_norm),
      .k_eps = eps_of(k_norm),
      .positions = plan.positions.data(),
      .slots = plan.slots.data(),
      .q = q.data,
      .pages = cache.layer(layer),
      .storage = cache.storage,
      .heads = heads,
      .kv_heads = cache.kv_heads,
      .dim = cache.dim,
      .dim_padded = cache.dim_padded,
      .page_stride = cache.page_size(),
  };
  const int64_t step = std::max<int64_t>(1, 8192 / qkv.columns);
  pool_->run(divide_up(plan.rows, step), [&](int64_t chunk, int) {
    for (int64_t r = chunk * step; r < std::min((chunk + 1) * step, plan.rows); ++r)
      kernels_.rope_store(job, r);
  });
}

void Backend::attend(Rows<const float> q, const Cache& cache, int64_t layer, const Plan& plan,
                     float scale, Rows<float> out, int64_t window) {
  const int64_t heads = check_heads(q.rows, q.columns, cache, layer, plan);
  require_equal("out rows", out.rows, q.rows);
  require_equal("out columns", out.columns, q.columns);
  require(window >= 0, "window", window, "0 or a number of positions");

  if (plan.rows == 0) return;

  const Turn turn(mutex_, seconds_.attend);
  AttendJob job = {
      .q = q.data,
      .out = out.data,
      .pages = cache.layer(layer),
      .storage = cache.storage,
      .heads = heads,
      .kv_heads = cache.kv_heads,
      .dim = cache.dim,
      .dim_padded = cache.dim_padded,
      .page_stride = cache.page_size(),
      .scale = scale,
      .window = window,
      .positions = plan.positions.data(),
      .works = plan.works.data(),
      .span_works = plan.span_works.data(),
      .span = window ? std::max<int64_t>(0, plan.positions_begin - window + 1) / kSpan : 0,
      .span_end = divide_up(plan.positions_end, kSpan),
      .row = 0,
      .row_end = 0,
      .sums = nullptr,
  };
  const int64_t row_sums = (job.span_end - job.span) * heads * (cache.dim_padded + 2);
  const int64_t most = std::max<int64_t>(1, kSumsBytes / (row_sums * int64_t{sizeof(float)}));
  job.sums = sums_.get<float>(std::min(most, plan.rows) * row_sums);
  for (; job.row < plan.rows; job.row = job.row_end) {
    job.row_end = std::min(job.row + most, plan.rows);
    attend_rows(job);
  }
}

// Chunks are blocks of rows of a span and kv_head. Those of the same span and kv_head follow each
// other, so that its keys and values, once fetched from memory, are in cache for all of them.
void Backend::attend_rows(const AttendJob& job) {
  const int64_t rows = job.row_end - job.row, spans = job.span_end - job.span;
  const int64_t group = job.heads / job.kv_heads;
  const int64_t fair = divide_up(rows * job.kv_heads * spans, 8 * threads());
  const int64_t block = std::clamp(fair, divide_up(kFewQueries, group),
                                   std::max(divide_up(kFewQueries, group), kMostQueries / group));
  const int64_t blocks = divide_up(rows, block);
  const int64_t size = divide_up(kernels_.attend_scratch(job, block * group), 64) * 64;
  auto* scratch = attention_.get<float>(size * threads());
  pool_->run(spans * job.kv_heads * blocks, [&](int64_t chunk, int thread) {
    const int64_t row = job.row + chunk % blocks * block;
    kernels_.attend(job, job.span + chunk / blocks / job.kv_heads, chunk / blocks % job.kv_heads,
                    row, std::min(row + block, job.row_end), scratch + thread * size);
  });
  const int64_t step = divide_up(256, job.heads * spans);  // less is not worth another thread
  pool_->run(divide_up(rows, step), [&](int64_t chunk, int) {
    const int64_t row = job.row + chunk * step;
    for (int64_t r = row; r < std::min(row + step, job.row_end); ++r) kernels_.merge(job, r);
  });
}

void Backend::run(const Stack& stack, Rows<float> h, Cache& cache, const Plan& plan,
                  const std::vector<Rope>& ropes) {
  require_equal("layers", std::ssize(stack.layers), cache.layers);
  for (const Layer& layer : stack.layers) require_index("rope", layer.rope, std::ssize(ropes));
  std::lock_guard lock(mutex_);
  const auto rows = [&](Scratch& scratch, int64_t columns) {
    return Rows<float>{scratch.get<float>(h.rows * columns), h.rows, columns};
  };
  const auto read = [](Rows<float> r) { return Rows<const float>{r.data, r.rows, r.columns}; };
  for (int64_t i = 0; i < cache.layers; ++i) {
    const Layer& layer = stack.layers[i];
    const auto qkv = rows(qkv_, layer.qkv->outputs), q = rows(q_, layer.o->inputs);
    const auto attended = rows(attended_, layer.o->inputs), ffn = rows(ffn_, layer.down->inputs);
    linear(read(h), *layer.qkv, qkv, {.norm = layer.attn_norm.view()});
    rope_store(read(qkv), cache, i, plan, ropes[layer.rope], q, layer.q_norm.view(),
               layer.k_norm.view());
    attend(read(q), cache, i, plan, stack.scale, attended, layer.window);
    linear(read(attended), *layer.o, h, {.post_norm = layer.post_attn_norm.view(), .add = true});
    linear(read(h), *layer.gate_up, ffn,
           {.norm = layer.ffn_norm.view(), .activation = stack.activation});
    linear(read(ffn), *layer.down, h, {.post_norm = layer.post_ffn_norm.view(), .add = true});
  }
}

void Backend::copy_page(Cache& cache, int64_t source, int64_t target) {
  require_index("source page", source, cache.pages);
  require_index("target page", target, cache.pages);
  if (source == target) return;
  const Turn turn(mutex_, seconds_.copy_page);
  const int64_t bytes = cache.page_size() * cache.number_bytes();
  std::memcpy(cache.layer(0) + target * bytes, cache.layer(0) + source * bytes,
              static_cast<size_t>(bytes));
}

void Backend::draw(Rows<const float> logits, const DrawArrays& draws) {
  check_draws(draws, logits.rows, logits.columns);
  if (draws.count == 0) return;
  const Turn turn(mutex_, seconds_.draw);
  const int64_t vocab = logits.columns;
  // Many draws may share a row: after a fork, all children start from one.
  auto* stats = stats_.get<RowStats>(logits.rows);
  std::vector<int32_t> rows(draws.row, draws.row + draws.count);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  pool_->run(static_cast<int64_t>(rows.size()), [&](int64_t i, int) {
    stats[rows[i]] = kernels_.row_stats(logits.data + rows[i] * vocab, vocab);
  });
  for (const int32_t row : rows) check_distribution(std::isfinite(stats[row].mass), row);
  pool_->run(draws.count, [&](int64_t i, int thread) {
    const int32_t row = draws.row[i];
    drawers_[thread].draw(kernels_, draws, i, logits.data + row * vocab, vocab, stats[row]);
  });
}

}  // namespace anabranch
