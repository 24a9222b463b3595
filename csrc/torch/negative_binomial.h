// The torch side of the prepared families of the two negative binomial densities.
#pragma once

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/reciprocal.h>

#include "negative_binomial_log_prob/negative_binomial_log_prob.h"
#include "torch/log_density.h"

namespace fastvi {

// Whether several means meet a count and its dispersion: then what these share is worth computing
// once. On a CPU alone: the CUDA kernels have no prepared families. In half precision what is
// prepared would have to be kept in another type than its neighbours.
inline bool has_many_means(const at::Tensor& value, const at::Tensor& dispersion,
                           const at::Tensor& mean, const c10::SymDimVector& shape) {
  constexpr int64_t kMany = 2, kSmall = 4096;
  const auto type = mean.scalar_type();
  if (!mean.is_cpu() || kCudaEmulated || accumulate_type(type) != type) return false;
  const int64_t total = c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(shape));
  c10::SymDimVector own;
  broadcast_into(&own, value.sym_sizes());
  broadcast_into(&own, dispersion.sym_sizes());
  return total >= kSmall && total >= kMany * c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(own));
}

// Value, mean, dispersion and what else the density has, then what its means share: the reciprocal
// of the count and the term of PreparedNegativeBinomialFamily.
template <size_t n>
std::optional<std::array<at::Tensor, n + 2>> prepare_negative_binomial(
    const std::array<at::Tensor, n>& operands, const c10::SymDimVector& shape,
    const LogDensityParams& params, Derivatives derivatives) {
  if (derivatives == Derivatives::of_all) return std::nullopt;
  if (!has_many_means(operands[0], operands[2], operands[1], shape)) return std::nullopt;
  const auto term_of = [&](NegativeBinomialTerm term, const at::Tensor& value,
                           const at::Tensor& given) {
    c10::SymDimVector shape;
    broadcast_into(&shape, value.sym_sizes());
    broadcast_into(&shape, given.sym_sizes());
    NegativeBinomialTermParams p{};
    p.term = static_cast<int32_t>(term);
    p.log_dispersion = params.log_parameter;
    return row_sum_forward<negative_binomial_term, 2>({value, given}, shape, /*event_dims=*/0, p);
  };
  const at::Tensor &value = operands[0], &given = operands[2];
  std::array<at::Tensor, n + 2> prepared;
  std::copy(operands.begin(), operands.end(), prepared.begin());
  prepared[2] = term_of(NegativeBinomialTerm::dispersion, given, given);
  prepared[n] = value.clamp_min(1).reciprocal_();
  const bool slope = derivatives != Derivatives::none;
  prepared[n + 1] =
      term_of(slope ? NegativeBinomialTerm::slope : NegativeBinomialTerm::value, value, given);
  return prepared;
}

}  // namespace fastvi
