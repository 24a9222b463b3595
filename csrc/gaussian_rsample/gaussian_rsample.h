// gaussian_rsample: z = loc + sigma eps with log q(z) and log p(z), and its gradient, see
// engines/rsample.h.
#pragma once

#include "engines/rsample.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(gaussian_rsample_prepare, RsampleParams);  // tasks: B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample, RsampleParams);          // tasks: K * B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample_backward,
                      RsampleParams);  // tasks: num_splits * B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample_combine, RsampleParams);  // tasks: B * D

}  // namespace fastvi

// Calls `...` with Kind bound to the kind of a call.
#define FASTVI_SWITCH_GAUSSIAN_DRAW(params, Kind, ...) \
  if ((params).elementwise) {                          \
    using Kind = NormalDrawOfEach;                     \
    __VA_ARGS__;                                       \
  } else if ((params).prior_loc != nullptr) {          \
    using Kind = NormalDrawWithPrior;                  \
    __VA_ARGS__;                                       \
  } else {                                             \
    using Kind = NormalDraw;                           \
    __VA_ARGS__;                                       \
  }
