// The extension module fastvi._C: every op as a plain function, and what it was built for.
// Importing it registers the ops with torch's dispatcher.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "common/torch/autograd.h"
#include "common/torch/empty.h"
#include "common/torch/graph_part.h"
#include "common/torch/launch.h"
#include "common/torch/products.h"

namespace fastvi {
namespace {

namespace py = pybind11;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A dual tensor of forward-mode AD; under torch.func there is none, and the reference runs.
bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
bool is_dual(const OptionalTensor& t) { return t.has_value() && is_dual(*t); }
template <class T>
bool is_dual(const T&) {
  return false;
}

template <class R, class... Args, class... Extra>
void bind_op(py::module_& m, const char* name, R (*)(Args...), const Extra&... extra) {
  const auto op = find_op<R(Args...)>((std::string("fastvi::") + name).c_str());
  m.def(
      name,
      [op, name](Args... args) -> R {
        TORCH_CHECK(!(is_dual(args) || ...), name,
                    ": expected no tangents outside torch.func, got a dual tensor of forward-mode "
                    "AD; use torch.func.jvp, or fastvi.ops.",
                    name, ".reference");
        return op.call(args...);
      },
      extra..., py::call_guard<py::gil_scoped_release>());
}
// The signature of an op, as a value to deduce from.
template <class Signature>
constexpr Signature* signature = nullptr;

template <class Nodes>
py::list in_python(const Nodes& nodes) {
  py::list list;
  for (const auto& node : nodes) {
    list.append(py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node)));
  }
  return list;
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["cuda_emulated"] = kCudaEmulated;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu_isa_name(cpu_isa());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  m.def("build_info", &build_info,
        "What this extension was built with, and the CPU instruction set it runs.");
  m.def(
      "products_by_onednn", [] { return products_by_onednn(); },
      "Whether the float32 products of the linear ops on a CPU outrun those of torch's Linear.");
  m.def("release_kept_memory", &release_kept_memory, "Give back the memory of freed results.");
  py::class_<GraphPart>(m, "GraphPart", "What a function made of an autograd graph.")
      .def(py::init<const Tensor&, uint64_t>(), arg("output"), arg("mark"))
      .def_static("mark", &GraphPart::mark)
      .def_property_readonly("sources", &GraphPart::sources)
      .def_property_readonly("hooked_nodes",
                             [](const GraphPart& part) { return in_python(part.hooked_nodes()); })
      .def_property_readonly("python_nodes",
                             [](const GraphPart& part) { return in_python(part.python_nodes()); })
      .def("cut", &GraphPart::cut)
      .def("restore", &GraphPart::restore);
  bind_op(m, "new_key", signature<Tensor(std::optional<at::Device>, std::optional<at::Generator>)>,
          arg("device") = py::none(), arg("generator") = py::none());
  bind_op(m, "gaussian_rsample",
          signature<std::tuple<Tensor, Tensor, Tensor>(
              const Tensor&, const Tensor&, c10::string_view, const Tensor&, c10::SymInt,
              c10::SymInt, const OptionalTensor&, const OptionalTensor&, c10::string_view, int64_t,
              const OptionalTensor&)>,
          arg("loc"), arg("spread"), arg("kind"), arg("key"), arg("num_samples"),
          arg("sample_offset") = 0, arg("prior_loc") = py::none(),
          arg("prior_log_var") = py::none(), arg("gradient") = "total", arg("event_dims") = 1,
          arg("sample_index") = py::none());
  bind_op(m, "laplace_rsample",
          signature<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, c10::string_view,
                                               const Tensor&, c10::SymInt, c10::SymInt, int64_t,
                                               const OptionalTensor&)>,
          arg("loc"), arg("spread"), arg("kind"), arg("key"), arg("num_samples"),
          arg("sample_offset") = 0, arg("event_dims") = 1, arg("sample_index") = py::none());
  bind_op(m, "gaussian_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const Tensor&, c10::string_view, int64_t)>,
          arg("value"), arg("loc"), arg("spread"), arg("kind"), arg("event_dims") = 1);
  bind_op(m, "bernoulli_log_prob", signature<Tensor(const Tensor&, const Tensor&, int64_t)>,
          arg("value"), arg("logits"), arg("event_dims") = 1);
  bind_op(
      m, "bernoulli_sample",
      signature<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, std::optional<c10::SymInt>,
                                           c10::SymInt, int64_t, const OptionalTensor&)>,
      arg("logits"), arg("key"), arg("num_samples") = py::none(), arg("sample_offset") = 0,
      arg("event_dims") = 1, arg("sample_index") = py::none());
  bind_op(
      m, "categorical_sample",
      signature<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, std::optional<c10::SymInt>,
                                           c10::SymInt, const OptionalTensor&)>,
      arg("logits"), arg("key"), arg("num_samples") = py::none(), arg("sample_offset") = 0,
      arg("sample_index") = py::none());
  bind_op(m, "linear_bernoulli_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&)>,
          arg("hidden"), arg("weight"), arg("bias"), arg("value"));
  bind_op(m, "linear_gaussian_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                           const Tensor&, c10::string_view)>,
          arg("hidden"), arg("weight"), arg("bias"), arg("value"), arg("spread"), arg("kind"));
  bind_op(m, "linear_poisson_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&)>,
          arg("hidden"), arg("weight"), arg("bias"), arg("value"));
  bind_op(m, "laplace_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const Tensor&, c10::string_view, int64_t)>,
          arg("value"), arg("loc"), arg("scale"), arg("kind"), arg("event_dims") = 1);
  bind_op(m, "poisson_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, c10::string_view, int64_t)>, arg("value"),
          arg("rate"), arg("kind"), arg("event_dims") = 1);
  bind_op(m, "negative_binomial_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const Tensor&, c10::string_view, int64_t)>,
          arg("value"), arg("mean"), arg("dispersion"), arg("kind"), arg("event_dims") = 1);
  bind_op(m, "zero_inflated_negative_binomial_log_prob",
          signature<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           c10::string_view, int64_t)>,
          arg("value"), arg("mean"), arg("dispersion"), arg("gate_logits"), arg("kind"),
          arg("event_dims") = 1);
  bind_op(m, "categorical_log_prob", signature<Tensor(const Tensor&, const Tensor&)>, arg("value"),
          arg("logits"));
  bind_op(m, "gaussian_kl",
          signature<Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                           const OptionalTensor&, bool)>,
          arg("loc"), arg("log_var"), arg("prior_loc") = py::none(),
          arg("prior_log_var") = py::none(), arg("of_scales") = false);
  bind_op(m, "iwlb",
          signature<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                       const OptionalTensor&, bool, double)>,
          arg("log_w"), arg("log_pz") = py::none(), arg("log_qz") = py::none(),
          arg("samples_last") = false, arg("alpha") = 0.0);
  bind_op(m, "leave_one_out", signature<std::tuple<Tensor, Tensor>(const Tensor&)>, arg("log_w"));
}

}  // namespace fastvi
