// new_key: the one impure op. It draws from torch's own generator, so that torch.manual_seed
// governs it and a captured CUDA graph draws anew at every replay. It needs no kernel of its own.
#include <ATen/ops/randint.h>
#include <torch/library.h>

#include <limits>

#include "torch/binding.h"

namespace fastvi::new_key_op {
namespace {

at::Tensor new_key(std::optional<at::Device> device, std::optional<at::Generator> generator) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device.value_or(at::kCPU));
  return at::randint(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), {2},
                     generator, options);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  // Without the tag on randomness, compile with checkpointing would give silently wrong gradients.
  m.def("new_key(*, Device? device=None, Generator? generator=None) -> Tensor",
        torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, &new_key),
        {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  bind_op_later("new_key", &new_key);
}

}  // namespace fastvi::new_key_op
