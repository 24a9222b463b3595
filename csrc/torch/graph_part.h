// The part of an autograd graph that a function of the user made, apart from what it was made from:
// it can be differentiated by itself, as often as it is made anew, while the rest waits.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace fastvi {

class GraphPart {
  using Edge = torch::autograd::Edge;
  // Which kind of pointer is the version of torch's business.
  using NodePtr = decltype(Edge::function);

 public:
  // Below the number of every node that this thread makes from now on.
  static uint64_t mark();

  // What `output`, whose own node is one of them, has of nodes that were made since the mark:
  // this thread's, and those of other threads that depend on one of these.
  GraphPart(const at::Tensor& output, uint64_t mark);

  // Where the part ends, each place once: a leaf, or a tensor that stands for one with an older
  // graph, with its place in that graph but not its values.
  const std::vector<at::Tensor>& sources() const { return sources_; }

  // The nodes of the part that have a hook, which may count on being run with all the others, as
  // that of a sharded module counts on its parameters' gradients.
  const std::vector<NodePtr>& hooked_nodes() const { return hooked_nodes_; }

  // The nodes that were written in Python, which may do what a hook does.
  const std::vector<NodePtr>& python_nodes() const { return python_nodes_; }

  // Puts a leaf in place of each source, and returns these leaves: gradients stop there, and meet
  // neither the sources' hooks nor each other, where one source was made from another.
  std::vector<at::Tensor> cut();
  void restore();

 private:
  struct Crossing {
    NodePtr from;
    size_t index;
    size_t source;
  };

  std::vector<Edge> edges_;
  std::vector<at::Tensor> sources_;
  std::vector<Crossing> crossings_;
  std::vector<NodePtr> hooked_nodes_;
  std::vector<NodePtr> python_nodes_;
};

}  // namespace fastvi
