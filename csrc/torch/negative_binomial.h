// The torch side of the prepared families of the two negative binomial densities.
#pragma once

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/reciprocal.h>

#include "negative_binomial_log_prob/negative_binomial_log_prob.h"
#include "torch/log_density.h"

namespace fastvi {

// Whether several means meet a count and its dispersion: then what these share is worth computing
// once. On a card that is a launch more, about as long as the log-gammas of `kCard` elements; its
// emulation has no launches. In half precision what is prepared would have to be kept in another
// type than its neighbours.
inline bool has_many_means(const at::Tensor& value, const at::Tensor& dispersion,
                           const at::Tensor& mean, const c10::SymDimVector& shape) {
  constexpr int64_t kMany = 2, kSmall = 4096, kCard = 262144;
  const auto type = mean.scalar_type();
  if (accumulate_type(type) != type) return false;
  const int64_t total = c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(shape));
  c10::SymDimVector own;
  broadcast_into(&own, value.sym_sizes());
  broadcast_into(&own, dispersion.sym_sizes());
  return total >= (mean.is_cpu() ? kSmall : kCard) &&
         total >= kMany * c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(own));
}

inline at::Tensor negative_binomial_term_of(NegativeBinomialTerm term, const at::Tensor& value,
                                            const at::Tensor& dispersion,
                                            const LogDensityParams& params) {
  c10::SymDimVector shape;
  broadcast_into(&shape, value.sym_sizes());
  broadcast_into(&shape, dispersion.sym_sizes());
  NegativeBinomialTermParams p{};
  p.term = static_cast<int32_t>(term);
  p.log_dispersion = params.log_parameter;
  return row_sum_forward<negative_binomial_term, 2>({value, dispersion}, shape, /*event_dims=*/0,
                                                    p);
}

// What the density has, then the term that its means share: all that a card wants, see
// NegativeBinomialCardFamily.
template <size_t n>
std::optional<std::array<at::Tensor, n + 1>> prepare_negative_binomial_on_card(
    const std::array<at::Tensor, n>& operands, const c10::SymDimVector& shape,
    const LogDensityParams& params, Derivatives derivatives) {
  if (derivatives == Derivatives::of_all) return std::nullopt;
  if (!has_many_means(operands[0], operands[2], operands[1], shape)) return std::nullopt;
  const bool slope = derivatives != Derivatives::none;
  const auto kind = slope ? NegativeBinomialTerm::slope : NegativeBinomialTerm::value;
  std::array<at::Tensor, n + 1> prepared;
  std::copy(operands.begin(), operands.end(), prepared.begin());
  prepared[n] = negative_binomial_term_of(kind, operands[0], operands[2], params);
  return prepared;
}

// A CPU wants the dispersion itself, whichever way it was given, and the reciprocal of the count
// before the term: see PreparedNegativeBinomialFamily.
template <size_t n>
std::optional<std::array<at::Tensor, n + 2>> prepare_negative_binomial(
    const std::array<at::Tensor, n>& operands, const c10::SymDimVector& shape,
    const LogDensityParams& params, Derivatives derivatives) {
  const auto with_term = prepare_negative_binomial_on_card(operands, shape, params, derivatives);
  if (!with_term) return std::nullopt;
  std::array<at::Tensor, n + 2> prepared;
  std::copy(operands.begin(), operands.end(), prepared.begin());
  const at::Tensor& given = operands[2];
  prepared[2] = negative_binomial_term_of(NegativeBinomialTerm::dispersion, given, given, params);
  prepared[n] = operands[0].clamp_min(1).reciprocal_();
  prepared[n + 1] = with_term->back();
  return prepared;
}

}  // namespace fastvi
