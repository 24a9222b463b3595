// What log-densities with one positive parameter share: it is given as it is, or as its logarithm.
#pragma once

#include "engines/row_sum.h"

namespace fastvi {

struct LogDensityParams : RowSumParams {
  bool log_parameter;
  // The operands are those of the prepared family of the op, where it has one.
  bool prepared;
};

FASTVI_ISA_BEGIN

template <bool log_parameter, class V>
FASTVI_HD V positive_of(V parameter) {
  if constexpr (log_parameter) return exp(parameter);
  return parameter;
}
// x * log(y), and zero where x is: an outcome that does not occur says nothing.
template <class V>
FASTVI_HD V times_log(V x, V log_y) {
  return select(x == broadcast<V>(0), broadcast<V>(0), x * log_y);
}

FASTVI_ISA_END
}  // namespace fastvi

// Calls `...` with Family bound to the family for the kind of parameter.
#define FASTVI_SWITCH_LOG_PARAMETER(params, Template, Family, ...) \
  if ((params).log_parameter) {                                    \
    using Family = Template<true>;                                 \
    __VA_ARGS__;                                                   \
  } else {                                                         \
    using Family = Template<false>;                                \
    __VA_ARGS__;                                                   \
  }
