// laplace_rsample: z = loc + b eps with log q(z), and its gradient, see engines/rsample.h. sigma
// there is the scale b here.
#pragma once

#include "engines/rsample.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(laplace_rsample_prepare, RsampleParams);  // tasks: B * num_segments
FASTVI_DECLARE_KERNEL(laplace_rsample, RsampleParams);          // tasks: K * B * num_segments
FASTVI_DECLARE_KERNEL(laplace_rsample_backward,
                      RsampleParams);  // tasks: num_splits * B * num_segments
FASTVI_DECLARE_KERNEL(laplace_rsample_combine, RsampleParams);  // tasks: B * D

}  // namespace fastvi

// Calls `...` with Kind bound to the kind of a call.
#define FASTVI_SWITCH_LAPLACE_DRAW(params, Kind, ...) \
  if ((params).elementwise) {                         \
    using Kind = LaplaceDrawOfEach;                   \
    __VA_ARGS__;                                      \
  } else {                                            \
    using Kind = LaplaceDraw;                         \
    __VA_ARGS__;                                      \
  }
