// The extension module fastvi._C: every op as a plain function, and what it was built for.
// Importing it registers the ops with torch's dispatcher.
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/version.h>

#include "torch/binding.h"
#include "torch/empty.h"
#include "torch/graph_part.h"
#include "torch/launch.h"

namespace fastvi {

namespace py = pybind11;

namespace {

using at::Tensor;

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

std::vector<std::function<void(py::module_&)>>& bindings() {
  static std::vector<std::function<void(py::module_&)>> all;
  return all;
}

PYBIND11_MODULE(_C, m) {
  using py::arg;
  m.def("build_info", &build_info,
        "What this extension was built with, and the CPU instruction set it runs.");
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
  for (const auto& bind : bindings()) bind(m);
}

}  // namespace fastvi
