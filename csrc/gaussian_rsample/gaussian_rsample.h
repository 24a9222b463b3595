// gaussian_rsample: z = loc + sigma eps with log q(z) and log p(z), and its gradient.
//
// Forward, per sample k, datum b (sums over the features):
//   log q = -sum eps^2 / 2 - sum log sigma - D log(2 pi) / 2
//   log p = -sum (z - loc_p)^2 / (2 var_p) - sum log var_p / 2 - D log(2 pi) / 2
// Backward, with the gradients g_z, g_q, g_p that reach z, log q and log p:
//   u = weight * (g_z - g_p (z - loc_p) / var_p  [- g_q eps / sigma where path_only])
//   d loc = sum_k u,   d log sigma = sum_k (sigma u eps  [- g_q where not path_only])
//   d loc_p = sum_k g_p (z - loc_p) / var_p
//   d log var_p = sum_k g_p ((z - loc_p)^2 / var_p - 1) / 2
// weight is 1, or one number per (k, b). The noise is made again, never stored.
#pragma once

#include "common/normal.h"
#include "common/spread.h"

namespace fastvi {

struct GaussianRsampleParams {
  const void* loc;            // [B, D], dtype
  const void* spread;         // [B, D], dtype
  const void* prior_loc;      // [B, D] or [D], dtype; null for N(0, I)
  const void* prior_log_var;  // as prior_loc
  int64_t prior_stride;       // elements between the prior's rows: D, or 0 for [D]
  const int64_t* key;         // [2] seed, stream; where the data is
  int64_t num_samples, batch, features, sample_offset;
  Dtype dtype;
  SpreadKind spread_kind;
  bool path_only;

  // What `prepare` makes once per call, in the accumulation type, so that nothing of it is done K
  // times: sigma, and the constants of the two densities for each segment of features.
  void* sigma;              // [B, D]
  void* inverse_prior_var;  // [prior rows, D]; null for N(0, I)
  void* log_q_constant;     // [B, num_segments]
  void* log_p_constant;     // [B, num_segments]

  // Features are cut in segments; one, unless a row is long.
  int64_t num_segments;  // of kRsampleSegment features
  void* z;               // [K, B, D], dtype
  void* log_q;           // [K, B, num_segments], accumulation type
  void* log_p;           // [K, B, num_segments]

  const void* grad_z;       // [K, B, D], dtype; null for zero
  const void* grad_log_q;   // [K, B], accumulation type; null for zero
  const void* grad_log_p;   // [K, B]; null for zero
  const void* path_weight;  // [K, B]; null for one

  // The sum over k runs in splits, a fixed number for a shape; `combine` adds them in order.
  int64_t num_splits, split_size;
  void* partial;             // [num_splits, outputs, B, D], outputs = rsample_outputs(p)
  void* grad_loc;            // [B, D], dtype
  void* grad_spread;         // [B, D], dtype
  void* grad_prior_loc;      // [B, D], accumulation type; null for N(0, I)
  void* grad_prior_log_var;  // [B, D]
};

inline constexpr int64_t kRsampleSegment = 4096;
// Threads that a large device wants at work in the backward, and the bounds of a split of K: long
// enough to pay for its partial sums, short enough for a plain float32 sum to stay accurate.
inline constexpr int64_t kRsampleThreads = 131072;
inline constexpr int64_t kRsampleMinSplit = 16;
inline constexpr int64_t kRsampleMaxSplit = 256;

// Sums that the backward keeps per (b, d): d loc and d log sigma; with a prior, its two as well.
FASTVI_HD int64_t rsample_outputs(const GaussianRsampleParams& p) {
  return p.prior_loc != nullptr ? 4 : 2;
}

FASTVI_DECLARE_KERNEL(gaussian_rsample_prepare, GaussianRsampleParams);  // tasks: B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample, GaussianRsampleParams);  // tasks: K * B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample_backward,
                      GaussianRsampleParams);  // tasks: num_splits * B * num_segments
FASTVI_DECLARE_KERNEL(gaussian_rsample_combine, GaussianRsampleParams);  // tasks: B * D

FASTVI_ISA_BEGIN

// What one element adds to the backward's sums.
template <class V>
struct RsampleSums {
  V loc, log_sigma, prior_loc, prior_log_var;
};

// `prior` says at compile time whether there is one; for N(0, I) loc_p = 0 and var_p = 1.
template <bool prior, class V>
FASTVI_HD void rsample_accumulate(V eps, V loc, V sigma, V prior_loc, V inverse_prior_var, V grad_z,
                                  V grad_q, V grad_p, V weight, bool path_only,
                                  RsampleSums<V>* sums) {
  V distance = multiply_add<false>(sigma, eps, loc);
  if constexpr (prior) distance = distance - prior_loc;
  V pull = grad_p * distance;
  if constexpr (prior) {
    pull = pull * inverse_prior_var;
    sums->prior_loc = sums->prior_loc + pull;
    sums->prior_log_var =
        sums->prior_log_var + broadcast<V>(0.5) * multiply_add<false>(pull, distance, -grad_p);
  }
  V u = grad_z - pull;
  if (path_only) u = u - grad_q * eps / sigma;
  u = u * weight;
  sums->loc = sums->loc + u;
  V by_log_sigma = (sigma * u) * eps;
  if (!path_only) by_log_sigma = by_log_sigma - grad_q;
  sums->log_sigma = sums->log_sigma + by_log_sigma;
}

FASTVI_ISA_END
}  // namespace fastvi
