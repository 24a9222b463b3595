// The torch side of the prepared families of the two negative binomial densities.
#pragma once

#include <ATen/ops/exp.h>
#include <ATen/ops/reciprocal.h>

#include "common/torch/row_sum.h"
#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

namespace fastvi {

// Value, mean, dispersion and what else the density has, then what its means share: the reciprocal
// of the dispersion and the term of PreparedNegativeBinomialFamily.
template <size_t n>
std::array<at::Tensor, n + 2> prepare_negative_binomial(const std::array<at::Tensor, n>& operands,
                                                        bool log_dispersion, bool derivative) {
  const at::Tensor theta = log_dispersion ? operands[2].exp() : operands[2];
  std::array<at::Tensor, n + 2> prepared;
  std::copy(operands.begin(), operands.end(), prepared.begin());
  prepared[2] = theta;
  prepared[n] = theta.reciprocal();
  c10::SymDimVector shape;
  broadcast_into(&shape, operands[0].sym_sizes());
  broadcast_into(&shape, theta.sym_sizes());
  NegativeBinomialTermParams p{};
  p.derivative = derivative;
  prepared[n + 1] =
      row_sum_forward<negative_binomial_term, 2>({operands[0], theta}, shape, /*event_dims=*/0, p);
  return prepared;
}

}  // namespace fastvi
