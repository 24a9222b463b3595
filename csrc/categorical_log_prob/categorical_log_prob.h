// The log-probability of one of C outcomes from logits l: l_x - log sum_c exp(l_c), and its
// derivative 1[c = x] - softmax(l)_c. An x that is no outcome has a density of NaN.
#pragma once

#include "maths/log_sum_exp.h"

namespace fastvi {

struct CategoricalLogProbParams {
  const int64_t* value;   // [value_period]
  const void* logits;     // [logits_period, C]
  const void* grad_out;   // [R], accumulation type
  void* out;              // [R], accumulation type
  void* grad_logits;      // [R, C]
  int64_t rows, classes;  // R, C
  // Row r is row r % period of an argument: what is broadcast over leading dimensions is not
  // copied.
  int64_t value_period, logits_period;
  Dtype dtype;
  bool grad_in_acc;  // the gradient of broadcast logits is summed afterwards, so not yet rounded
};

FASTVI_DECLARE_KERNEL(categorical_log_prob, CategoricalLogProbParams);           // tasks: rows
FASTVI_DECLARE_KERNEL(categorical_log_prob_backward, CategoricalLogProbParams);  // tasks: rows

FASTVI_ISA_BEGIN

template <class S>
FASTVI_HD S categorical_log_density(S logit, S max, S sum) {
  return (logit - max) - log(sum);
}

FASTVI_ISA_END
}  // namespace fastvi
