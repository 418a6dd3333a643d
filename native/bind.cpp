// The Python module `anabranch._native`: types and ranks are checked here, everything else below.
//
// Arrays are taken as they are or refused: no implicit conversion, so no silent copy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "backend.h"
#include "philox.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace anabranch;

namespace {

template <class T>
using Array1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using In1 = Array1<const float>;
using In2 = Array2<const float>;
using Out1 = Array1<float>;
using Out2 = Array2<float>;
using Ints1 = Array1<const int32_t>;
using MaybeIn1 = std::optional<In1>;

template <class A>
auto vector(const A& a) {
  return Vector<std::remove_pointer_t<decltype(a.data())>>{a.data(), (int64_t)a.shape(0)};
}
template <class A>
auto rows(const A& a) {
  return Rows<std::remove_pointer_t<decltype(a.data())>>{a.data(), (int64_t)a.shape(0),
                                                         (int64_t)a.shape(1)};
}
Ints ints(const Ints1& a) { return {a.data(), a.shape(0)}; }

std::optional<Norm> norm(const MaybeIn1& weight, float eps) {
  if (!weight) return std::nullopt;
  return Norm{vector(*weight), eps};
}

// A norm's weight and eps.
using NormArg = std::tuple<In1, float>;
using MaybeNorm = std::optional<NormArg>;

Layer::OwnNorm own(const MaybeNorm& norm) {
  if (!norm) return {};
  const auto& [weight, eps] = *norm;
  return {{weight.data(), weight.data() + weight.shape(0)}, eps};
}

void require(bool good, const std::string& name, size_t got, size_t expected) {
  if (!good)
    throw std::invalid_argument(name + ": got " + std::to_string(got) + ", expected " +
                                std::to_string(expected));
}

// A matrix on its way into `pack`, with the arrays it points into.
struct Source {
  Matrix matrix;
  nb::object arrays;
};

template <class Q, int Bits>
void quantized(Source* self, Array2<const Q> q, In2 scale, std::optional<In2> offset, int bits,
               int group) {
  require(bits == Bits, "bits of a matrix of this dtype", bits, Bits);
  require(group == 16 || group == 32, "group", group, 32);
  const auto check = [&](const char* name, const In2& a) {
    require(a.shape(0) == q.shape(0), std::string(name) + " rows", a.shape(0), q.shape(0));
    require(a.shape(1) == q.shape(1) / group, std::string(name) + " columns", a.shape(1),
            q.shape(1) / group);
  };
  check("scale", scale);
  if (offset) check("offset", *offset);
  new (self) Source{{.outputs = (int64_t)q.shape(0),
                   .inputs = (int64_t)q.shape(1),
                   .q = reinterpret_cast<const uint8_t*>(q.data()),
                   .bits = Bits,
                   .group = group,
                   .scale = scale.data(),
                   .offset = offset ? offset->data() : nullptr},
                  nb::make_tuple(nb::cast(q), nb::cast(scale), nb::cast(offset))};
}

void blocks(Source* self, const std::string& format, Array1<const uint8_t> data, int64_t outputs,
            int64_t inputs, bool mapped) {
  const BlockFormat& f = block_format(format);
  constexpr int64_t kMost = int64_t{1} << 31;
  const bool sized = outputs > 0 && outputs < kMost && inputs > 0 && inputs < kMost;
  require(sized && inputs % f.weights == 0, "inputs of blocks", inputs, f.weights);
  const size_t bytes = (size_t)outputs * (size_t)(inputs / f.weights * f.bytes);
  require(data.shape(0) == bytes, "bytes of blocks", data.shape(0), bytes);
  new (self) Source{{.outputs = outputs, .inputs = inputs, .format = &f, .blocks = data.data(),
                    .mapped = mapped},
                    nb::make_tuple(nb::cast(data))};
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // an engine may well live until the interpreter ends
  m.attr("__doc__") = "C++ kernels. Use them through anabranch.backends.native.";

  nb::enum_<Activation>(m, "Activation")
      .value("none", Activation::none)
      .value("silu", Activation::silu)
      .value("gelu_tanh", Activation::gelu_tanh);

  nb::class_<Source>(m, "Matrix")
      .def("__init__", quantized<uint8_t, 4>, "q"_a.noconvert(), "scale"_a.noconvert(),
           "offset"_a.noconvert().none(), "bits"_a, "group"_a)
      .def("__init__", quantized<int8_t, 8>, "q"_a.noconvert(), "scale"_a.noconvert(),
           "offset"_a.noconvert().none(), "bits"_a, "group"_a)
      .def("__init__", [](Source* self, In2 values) {
        new (self) Source{{.outputs = (int64_t)values.shape(0),
                         .inputs = (int64_t)values.shape(1),
                         .values = values.data()},
                        nb::make_tuple(nb::cast(values))};
      }, "values"_a.noconvert())
      .def("__init__", blocks, "format"_a, "data"_a.noconvert(), "outputs"_a, "inputs"_a,
           "mapped"_a);

  nb::class_<Linear>(m, "Linear")
      .def_ro("inputs", &Linear::inputs)
      .def_ro("outputs", &Linear::outputs)
      .def_ro("nbytes", &Linear::nbytes);

  nb::enum_<Storage>(m, "Storage").value("f32", Storage::f32).value("bf16", Storage::bf16);

  nb::class_<Cache>(m, "Cache")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, Storage>(), "layers"_a, "kv_heads"_a,
           "dim"_a, "pages"_a, "storage"_a)
      .def_ro("pages", &Cache::pages)
      .def_ro("nbytes", &Cache::nbytes);

  nb::class_<Plan>(m, "Plan")
      .def("__init__", [](Plan* self, const Ints1& tokens, const Ints1& positions,
                          const Ints1& slots, const Ints1& row_starts, const Ints1& tables,
                          const Ints1& table_starts, const Cache& cache) {
        new (self) Plan({ints(tokens), ints(positions), ints(slots), ints(row_starts),
                         ints(tables), ints(table_starts)}, cache.pages);
      }, "tokens"_a.noconvert(), "positions"_a.noconvert(), "slots"_a.noconvert(),
         "row_starts"_a.noconvert(), "tables"_a.noconvert(), "table_starts"_a.noconvert(),
         "cache"_a)
      .def_ro("rows", &Plan::rows)
      .def_prop_ro("works", [](const Plan& plan) {
        std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>> works;
        for (const Work& w : plan.works)
          works.emplace_back(w.row_begin, w.row_end, w.grid, w.count);
        return works;
      }, "Who reads what together: (first row, end, first grid index, pages), in order.");

  nb::class_<Stack>(m, "Stack")
      .def("__init__", [](Stack* self, Activation activation, float scale) {
        new (self) Stack{activation, scale, {}};
      }, "activation"_a, "scale"_a)
      .def("add", [](Stack& self, const Linear& qkv, const Linear& o, const Linear& gate_up,
                     const Linear& down, const NormArg& attn_norm, const MaybeNorm& q_norm,
                     const MaybeNorm& k_norm, const MaybeNorm& post_attn_norm,
                     const NormArg& ffn_norm, const MaybeNorm& post_ffn_norm, int64_t rope,
                     int64_t window) {
        self.layers.push_back({&qkv, &o, &gate_up, &down, own(attn_norm), own(q_norm), own(k_norm),
                               own(post_attn_norm), own(ffn_norm), own(post_ffn_norm), rope,
                               window});
      }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
         nb::keep_alive<1, 5>(), "qkv"_a, "o"_a, "gate_up"_a, "down"_a, "attn_norm"_a,
         "q_norm"_a.none(), "k_norm"_a.none(), "post_attn_norm"_a.none(), "ffn_norm"_a,
         "post_ffn_norm"_a.none(), "rope"_a, "window"_a);

  nb::class_<Backend>(m, "Backend")
      .def(nb::init<int, const std::string&>(), "threads"_a, "isa"_a = "")
      .def_prop_ro("isa", &Backend::isa)
      .def_prop_ro("threads", &Backend::threads)
      .def_prop_ro("seconds", [](const Backend& self) {
        const Seconds& s = self.seconds();
        nb::dict spent;
        spent["embed"] = s.embed, spent["linear"] = s.linear, spent["rope_store"] = s.rope_store;
        spent["attend"] = s.attend, spent["copy_page"] = s.copy_page, spent["draw"] = s.draw;
        return spent;
      }, "Seconds inside each operation since the backend was made.")
      .def_static("isas", &Backend::isas)
      .def("pack", [](Backend& self, const std::vector<const Source*>& parts,
                      const MaybeIn1& bias) {
        std::vector<Matrix> matrices;
        size_t outputs = 0;
        for (const Source* part : parts) {
          if (!part) throw std::invalid_argument("pack: got None, expected a matrix");
          matrices.push_back(part->matrix);
          outputs += (size_t)part->matrix.outputs;
        }
        if (bias) require(bias->shape(0) == outputs, "pack: bias", bias->shape(0), outputs);
        nb::gil_scoped_release release;
        return self.pack(matrices, bias ? bias->data() : nullptr);
      }, "parts"_a, "bias"_a.noconvert().none())
      .def("embed", [](Backend& self, const Linear& table, const Ints1& tokens, float scale,
                       const Out2& out) {
        nb::gil_scoped_release release;
        self.embed(table, vector(tokens), scale, rows(out));
      }, "table"_a, "tokens"_a.noconvert(), "scale"_a, "out"_a.noconvert())
      .def("linear", [](Backend& self, const In2& x, const Linear& weight, const Out2& out,
                        const MaybeIn1& norm_weight, float norm_eps, Activation activation,
                        const MaybeIn1& post_weight, float post_eps, bool add) {
        const LinearOptions options = {norm(norm_weight, norm_eps), norm(post_weight, post_eps),
                                       activation, add};
        nb::gil_scoped_release release;
        self.linear(rows(x), weight, rows(out), options);
      }, "x"_a.noconvert(), "weight"_a, "out"_a.noconvert(), "norm_weight"_a.noconvert().none(),
         "norm_eps"_a, "activation"_a, "post_weight"_a.noconvert().none(), "post_eps"_a, "add"_a)
      .def("rope_store", [](Backend& self, const In2& qkv, Cache& cache, int64_t layer,
                            const Plan& plan, const In2& cos, const In2& sin, const Out2& q,
                            const MaybeIn1& q_weight, float q_eps, const MaybeIn1& k_weight,
                            float k_eps) {
        const auto q_norm = norm(q_weight, q_eps), k_norm = norm(k_weight, k_eps);
        nb::gil_scoped_release release;
        self.rope_store(rows(qkv), cache, layer, plan, {rows(cos), rows(sin)}, rows(q), q_norm,
                        k_norm);
      }, "qkv"_a.noconvert(), "cache"_a, "layer"_a, "plan"_a, "cos"_a.noconvert(),
         "sin"_a.noconvert(), "q"_a.noconvert(), "q_weight"_a.noconvert().none(), "q_eps"_a,
         "k_weight"_a.noconvert().none(), "k_eps"_a)
      .def("attend", [](Backend& self, const In2& q, const Cache& cache, int64_t layer,
                        const Plan& plan, float scale, const Out2& out, int64_t window) {
        nb::gil_scoped_release release;
        self.attend(rows(q), cache, layer, plan, scale, rows(out), window);
      }, "q"_a.noconvert(), "cache"_a, "layer"_a, "plan"_a, "scale"_a, "out"_a.noconvert(),
         "window"_a)
      .def("run", [](Backend& self, const Stack& stack, const Out2& h, Cache& cache,
                     const Plan& plan, const std::vector<std::tuple<In2, In2>>& ropes) {
        std::vector<Rope> tables;
        for (const auto& [cos, sin] : ropes) tables.push_back({rows(cos), rows(sin)});
        nb::gil_scoped_release release;
        self.run(stack, rows(h), cache, plan, tables);
      }, "stack"_a, "h"_a.noconvert(), "cache"_a, "plan"_a, "ropes"_a)
      .def("copy_page", &Backend::copy_page, "cache"_a, "source"_a, "target"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("draw", [](Backend& self, const In2& logits, const Ints1& row, const Ints1& given,
                      const Array1<const uint64_t>& key, const Ints1& position,
                      const In1& temperature, const Ints1& top_k, const In1& top_p,
                      const In1& min_p, const Ints1& edit_starts, const Ints1& edit_token,
                      const In1& edit_scale, const In1& edit_shift,
                      const Array1<int32_t>& token, const Out1& logp, const Out1& logq,
                      const Out1& entropy) {
        const size_t count = row.shape(0), edits = edit_token.shape(0);
        const auto check = [](const char* name, const auto& a, size_t expected) {
          require(a.shape(0) == expected, std::string("draw: ") + name, a.shape(0), expected);
          return a.data();
        };
        const DrawArrays draws = {
            .count = (int64_t)count,
            .edits = (int64_t)edits,
            .row = row.data(),
            .given = check("given", given, count),
            .key = check("key", key, count),
            .position = check("position", position, count),
            .temperature = check("temperature", temperature, count),
            .top_k = check("top_k", top_k, count),
            .top_p = check("top_p", top_p, count),
            .min_p = check("min_p", min_p, count),
            .edit_starts = check("edit_starts", edit_starts, count + 1),
            .edit_token = edit_token.data(),
            .edit_scale = check("edit_scale", edit_scale, edits),
            .edit_shift = check("edit_shift", edit_shift, edits),
            .token = check("token", token, count),
            .logp = check("logp", logp, count),
            .logq = check("logq", logq, count),
            .entropy = check("entropy", entropy, count),
        };
        nb::gil_scoped_release release;
        self.draw(rows(logits), draws);
      }, "logits"_a.noconvert(), "row"_a.noconvert(), "given"_a.noconvert(), "key"_a.noconvert(),
         "position"_a.noconvert(), "temperature"_a.noconvert(), "top_k"_a.noconvert(),
         "top_p"_a.noconvert(), "min_p"_a.noconvert(), "edit_starts"_a.noconvert(),
         "edit_token"_a.noconvert(), "edit_scale"_a.noconvert(), "edit_shift"_a.noconvert(),
         "token"_a.noconvert(), "logp"_a.noconvert(), "logq"_a.noconvert(),
         "entropy"_a.noconvert());

  m.def("philox", [](uint64_t key, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const auto words = philox(key, {a, b, c, d});
    return std::make_tuple(words[0], words[1], words[2], words[3]);
  }, "key"_a, "a"_a, "b"_a, "c"_a, "d"_a);
}
