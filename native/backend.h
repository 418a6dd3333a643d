// The operations: arguments checked, work divided among threads.
//
// Everything here throws std::invalid_argument or std::out_of_range, naming what was wrong, before
// it writes anything.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "draw.h"
#include "kernels.h"
#include "linear.h"
#include "memory.h"
#include "plan.h"
#include "pool.h"

namespace anabranch {

template <class T>
struct Vector {
  T* data;
  int64_t size;
};

template <class T>
struct Rows {  // [rows, columns], C-contiguous
  T* data;
  int64_t rows, columns;
};

struct Norm {
  Vector<const float> weight;
  float eps;
};

// Keys and values: [page][layer], each a page of one layer as kernels/rows.h lays it out.
// `size`s are in numbers of the storage's type.
class Cache {
 public:
  Cache(int64_t layers, int64_t kv_heads, int64_t dim, int64_t pages, Storage storage);
  Cache(const Cache&) = delete;

  uint8_t* layer(int64_t index) const {
    return memory_.as<uint8_t>() + index * layer_size * number_bytes();
  }
  int64_t page_size() const { return layers * layer_size; }
  int64_t number_bytes() const { return storage == Storage::bf16 ? 2 : 4; }

  int64_t layers, kv_heads, dim, pages;
  Storage storage;
  int64_t dim_padded, layer_size, nbytes;

 private:
  Memory memory_;
};

// One decoder layer: its weights, as `Layer` in backends/base.py, and how it attends.
struct Layer {
  struct OwnNorm {
    std::vector<float> weight;  // empty: no norm
    float eps = 0;

    std::optional<Norm> view() const {
      if (weight.empty()) return std::nullopt;
      return Norm{{weight.data(), static_cast<int64_t>(weight.size())}, eps};
    }
  };

  const Linear *qkv, *o, *gate_up, *down;
  OwnNorm attn_norm, q_norm, k_norm, post_attn_norm, ffn_norm, post_ffn_norm;
  int64_t rope, window;
};

struct Stack {
  Activation activation;
  float scale;  // of attention
  std::vector<Layer> layers;
};

struct Rope {  // [positions, dim / 2] each
  Rows<const float> cos, sin;
};

struct LinearOptions {
  std::optional<Norm> norm = {}, post_norm = {};
  Activation activation = Activation::none;
  bool add = false;
};

// Seconds inside operations since the backend was made, whatever threads they used.
struct Seconds {
  double embed = 0, linear = 0, rope_store = 0, attend = 0, copy_page = 0, draw = 0;
};

class Backend {
 public:
  // `isa`: "avx512", "avx2", "portable", or "" for the best that this processor has.
  Backend(int threads, const std::string& isa);
  ~Backend();

  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_->threads(); }
  const Seconds& seconds() const { return seconds_; }
  static std::vector<std::string> isas();  // that this build and processor have, best first

  std::unique_ptr<Linear> pack(const std::vector<Matrix>& matrices, const float* bias);
  void embed(const Linear& table, Vector<const int32_t> tokens, float scale, Rows<float> out);
  void linear(Rows<const float> x, const Linear& weight, Rows<float> out,
              const LinearOptions& options);
  void rope_store(Rows<const float> qkv, Cache& cache, int64_t layer, const Plan& plan,
                  const Rope& rope, Rows<float> q,
                  const std::optional<Norm>& q_norm, const std::optional<Norm>& k_norm);
  void attend(Rows<const float> q, const Cache& cache, int64_t layer, const Plan& plan, float scale,
              Rows<float> out, int64_t window);
  // All layers over `h`, in place: the operations above, as `run_layers` in backends/base.py.
  void run(const Stack& stack, Rows<float> h, Cache& cache, const Plan& plan,
           const std::vector<Rope>& ropes);
  void copy_page(Cache& cache, int64_t source, int64_t target);
  void draw(Rows<const float> logits, const DrawArrays& draws);

 private:
  void attend_rows(const AttendJob& job);

  const Kernels& kernels_;
  std::unique_ptr<Pool> pool_;
  Arena weights_;
  std::recursive_mutex mutex_;  // one operation at a time, whatever Python thread it comes from
  Seconds seconds_;
  Scratch quantized_, masks_, apart_, apart_starts_, outputs_, attention_, sums_, stats_;
  Scratch qkv_, q_, attended_, ffn_;  // of `run`
  std::vector<Drawer> drawers_;  // of each thread
};

}  // namespace anabranch
