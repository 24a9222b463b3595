// The torch side of the prepared families of the two negative binomial densities.
#pragma once

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/reciprocal.h>

#include "negative_binomial_log_prob/negative_binomial_log_prob.h"
#include "torch/row_sum.h"

namespace fastvi {

// Value, mean, dispersion and what else the density has, then what its means share: the reciprocal
// of the count and the term of PreparedNegativeBinomialFamily.
template <size_t n>
std::array<at::Tensor, n + 2> prepare_negative_binomial(const std::array<at::Tensor, n>& operands,
                                                        bool log_dispersion, bool derivative) {
  const auto term_of = [&](NegativeBinomialTerm term, const at::Tensor& value,
                           const at::Tensor& given) {
    c10::SymDimVector shape;
    broadcast_into(&shape, value.sym_sizes());
    broadcast_into(&shape, given.sym_sizes());
    NegativeBinomialTermParams p{};
    p.term = static_cast<int32_t>(term);
    p.log_dispersion = log_dispersion;
    return row_sum_forward<negative_binomial_term, 2>({value, given}, shape, /*event_dims=*/0, p);
  };
  const at::Tensor &value = operands[0], &given = operands[2];
  std::array<at::Tensor, n + 2> prepared;
  std::copy(operands.begin(), operands.end(), prepared.begin());
  prepared[2] = term_of(NegativeBinomialTerm::dispersion, given, given);
  prepared[n] = value.clamp_min(1).reciprocal_();
  prepared[n + 1] =
      term_of(derivative ? NegativeBinomialTerm::slope : NegativeBinomialTerm::value, value, given);
  return prepared;
}

}  // namespace fastvi
