#include "torch/graph_part.h"

#include <ATen/SequenceNumber.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <string_view>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>

namespace fastvi {
namespace {

using at::Tensor;
using torch::autograd::AccumulateGrad;
using torch::autograd::Edge;
using torch::autograd::Node;

const AccumulateGrad* as_leaf(const Node* node) {
  return dynamic_cast<const AccumulateGrad*>(node);
}

// The nodes of the part. Other threads count their nodes by themselves, so theirs are told apart
// by what they depend on.
std::unordered_set<Node*> nodes_since(Node* root, uint64_t mark) {
  const uint64_t here = at::RecordFunction::currentThreadId();
  std::unordered_map<Node*, std::vector<Node*>> parents{{root, {}}};
  std::vector<Node*> todo{root}, inside;
  while (!todo.empty()) {
    Node* node = todo.back();
    todo.pop_back();
    if (as_leaf(node) != nullptr) continue;
    const bool ours = node->thread_id() == here;
    if (ours && node->sequence_nr() < mark) continue;
    if (ours) inside.push_back(node);
    for (const Edge& edge : node->next_edges()) {
      if (!edge.is_valid()) continue;
      auto [place, is_new] = parents.try_emplace(edge.function.get());
      place->second.push_back(node);
      if (is_new) todo.push_back(place->first);
    }
  }
  std::unordered_set<Node*> found(inside.begin(), inside.end());
  while (!inside.empty()) {
    Node* node = inside.back();
    inside.pop_back();
    for (Node* parent : parents[node]) {
      if (found.insert(parent).second) inside.push_back(parent);
    }
  }
  return found;
}

bool hooked(Node& node) {
  return !node.pre_hooks().empty() || !node.post_hooks().empty() ||
         !node.tensor_pre_hooks().empty() || !node.retains_grad_hooks().empty();
}

// torch does not export what a dynamic_cast to its type would need.
bool in_python(const Node& node) {
  return std::string_view(typeid(node).name()).find("autograd6PyNode") != std::string_view::npos;
}

// A tensor of one element's memory, with the type and the shape that an edge passes gradients of.
Tensor placeholder(const Edge& edge) {
  const auto& metadata = edge.function->input_metadata(edge.input_nr);
  TORCH_CHECK_VALUE(!metadata.is_nested_tensor() && metadata.layout() == at::kStrided,
                    "streaming: expected log_likelihood to use strided tensors, got one that is "
                    "nested or sparse; use chunk_size=None");
  return at::zeros({}, metadata.options()).expand_symint(metadata.shape_as_dim_vector());
}

}  // namespace

uint64_t GraphPart::mark() { return at::sequence_number::peek(); }

GraphPart::GraphPart(const Tensor& output, uint64_t mark) {
  const at::NoGradGuard no_grad;
  const auto root = torch::autograd::impl::gradient_edge(output).function;
  const auto inside = nodes_since(root.get(), mark);
  std::unordered_map<Node*, std::vector<std::pair<uint32_t, size_t>>> known;
  std::unordered_set<Node*> seen{root.get()};
  std::vector<NodePtr> todo{root};
  while (!todo.empty()) {
    const NodePtr node = todo.back();
    todo.pop_back();
    if (hooked(*node)) hooked_nodes_.push_back(node);
    if (in_python(*node)) python_nodes_.push_back(node);
    for (size_t index = 0; index < node->next_edges().size(); ++index) {
      const Edge& edge = node->next_edge(index);
      if (!edge.is_valid()) continue;
      if (inside.count(edge.function.get()) != 0) {
        if (seen.insert(edge.function.get()).second) todo.push_back(edge.function);
        continue;
      }
      size_t source = sources_.size();
      auto& places = known[edge.function.get()];
      for (const auto& [input_nr, place] : places) {
        if (input_nr == edge.input_nr) source = place;
      }
      if (source == sources_.size()) {
        places.emplace_back(edge.input_nr, source);
        edges_.push_back(edge);
        const auto* leaf = as_leaf(edge.function.get());
        sources_.push_back(leaf != nullptr
                               ? leaf->variable
                               : torch::autograd::make_variable(placeholder(edge), edge));
      }
      crossings_.push_back({node, index, source});
    }
  }
}

std::vector<Tensor> GraphPart::cut() {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> ends;
  for (const Edge& edge : edges_) {
    const auto* leaf = as_leaf(edge.function.get());
    ends.push_back(leaf != nullptr ? leaf->variable.detach() : placeholder(edge).detach());
    ends.back().set_requires_grad(true);
  }
  for (const auto& crossing : crossings_) {
    crossing.from->next_edges()[crossing.index] =
        torch::autograd::impl::gradient_edge(ends[crossing.source]);
  }
  return ends;
}

void GraphPart::restore() {
  for (const auto& crossing : crossings_) {
    crossing.from->next_edges()[crossing.index] = edges_[crossing.source];
  }
}

}  // namespace fastvi
