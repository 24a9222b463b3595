// z = loc + sigma eps with log q(z), log p(z) and their gradient: written once for every law of the
// noise eps, whose density is exp(-energy - log normaliser).
//
// Forward, per sample k, datum b (sums over the features):
//   log q = -sum energy(eps) - sum log sigma - D log normaliser
//   log p = -sum (z - loc_p)^2 / (2 var_p) - sum log var_p / 2 - D log(2 pi) / 2
// Backward, with the gradients g_z, g_q, g_p that reach z, log q and log p:
//   u = weight * (g_z - g_p (z - loc_p) / var_p  [- g_q eps / sigma where path_only])
//   d loc = sum_k u,   d log sigma = sum_k (sigma u eps  [- g_q where not path_only])
//   d loc_p = sum_k g_p (z - loc_p) / var_p
//   d log var_p = sum_k g_p ((z - loc_p)^2 / var_p - 1) / 2
// weight is 1, or one number per (k, b). The noise is made again, never stored. log p and path_only
// are for normal noise alone.
#pragma once

#include "maths/spread.h"
#include "noise/logistic.h"

namespace fastvi {

struct RsampleParams {
  const void* loc;            // [B, D], dtype
  const void* spread;         // [B, D], dtype
  const void* prior_loc;      // [B, D] or [D], dtype; null for N(0, I)
  const void* prior_log_var;  // as prior_loc
  int64_t prior_stride;       // elements between the prior's rows: D, or 0 for [D]
  const int64_t* key;         // [2] seed, stream; where the data is
  int64_t num_samples, batch, features, sample_offset;
  const int64_t* sample_index;  // [K, B] the numbers of the samples, or null, see SampleRows
  Dtype dtype;
  SpreadKind spread_kind;
  bool path_only;
  // log q of each feature, in place of its sum over them; then there is no log p.
  bool elementwise;

  // What `prepare` makes once per call, in the accumulation type, so that nothing of it is done K
  // times: sigma, and the constants of the two densities for each segment of features.
  void* sigma;                // [B, D]
  void* inverse_prior_scale;  // [prior rows, D]; null for N(0, I)
  void* log_q_constant;       // [B, num_segments], or [B, D]
  void* log_p_constant;       // [B, num_segments]; null without log p

  // Features are cut in segments; one, unless a row is long.
  int64_t num_segments;  // of kRsampleSegment features
  void* z;               // [K, B, D], dtype
  void* log_q;           // [K, B, num_segments], or [K, B, D], accumulation type
  void* log_p;           // [K, B, num_segments]

  const void* grad_z;       // [K, B, D], dtype; null for zero
  const void* grad_log_q;   // [K, B], or [K, B, D], accumulation type; null for zero
  const void* grad_log_p;   // [K, B]; null for zero
  const void* path_weight;  // [K, B]; null for one

  // The sum over k runs in splits, a fixed number for a shape; `combine` adds them in order.
  int64_t num_splits, split_size;
  void* partial;             // [num_splits, outputs, B, D], outputs = rsample_outputs(p)
  void* grad_loc;            // [B, D], accumulation type: a broadcast one is summed afterwards
  void* grad_spread;         // [B, D], accumulation type
  void* grad_prior_loc;      // [B, D], accumulation type; null for N(0, I)
  void* grad_prior_log_var;  // [B, D]
};

FASTVI_HD SampleRows rows_of(const RsampleParams& p) {
  return {p.sample_index, p.sample_offset, p.batch};
}

inline constexpr int64_t kRsampleSegment = 4096;
// Threads that a large device wants at work in the backward, and the bounds of a split of K: long
// enough to pay for its partial sums, short enough for a plain float32 sum to stay accurate.
inline constexpr int64_t kRsampleThreads = 131072;
inline constexpr int64_t kRsampleMinSplit = 16;
// On a card shorter ones pay: it waits for its multiprocessors that have no block.
inline constexpr int64_t kRsampleMinCardSplit = 8;
inline constexpr int64_t kRsampleMaxSplit = 256;

// Sums that the backward keeps per (b, d): d loc and d log sigma; with a prior, its two as well.
FASTVI_HD int64_t rsample_outputs(const RsampleParams& p) { return p.prior_loc != nullptr ? 4 : 2; }

FASTVI_ISA_BEGIN

// A law: what two words become, and its density.
struct NormalLaw {
  static constexpr double kLogNormaliser = kHalfLog2Pi;
  static constexpr double kShare = 0.5;  // of what add() sums, in the energy
  template <class V>
  static FASTVI_HD V add(V eps, V sum) {
    return multiply_add<false>(eps, eps, sum);
  }
  template <class V, class U>
  static FASTVI_HD void make(U a, U b, V* first, V* second) {
    box_muller<V>(a, b, first, second);
  }
};
struct LaplaceLaw {
  static constexpr double kLogNormaliser = kLog2;
  static constexpr double kShare = 1;
  template <class V>
  static FASTVI_HD V add(V eps, V sum) {
    return sum + abs(eps);
  }
  template <class V, class U>
  static FASTVI_HD void make(U a, U b, V* first, V* second) {
    *first = laplace<V>(a);
    *second = laplace<V>(b);
  }
};

// What is known of a call when its kernel is compiled. For N(0, I), which is no prior here,
// loc_p = 0 and var_p = 1.
template <class Law_, bool prior_, bool elementwise_>
struct RsampleKind {
  using Law = Law_;
  static constexpr bool prior = prior_, elementwise = elementwise_;
  static constexpr bool log_p = __is_same(Law, NormalLaw) && !elementwise;
  static_assert(log_p || !prior);
};
using NormalDraw = RsampleKind<NormalLaw, false, false>;
using NormalDrawWithPrior = RsampleKind<NormalLaw, true, false>;
using NormalDrawOfEach = RsampleKind<NormalLaw, false, true>;
using LaplaceDraw = RsampleKind<LaplaceLaw, false, false>;
using LaplaceDrawOfEach = RsampleKind<LaplaceLaw, false, true>;

// What one element adds to the backward's sums.
template <class V>
struct RsampleSums {
  V loc, log_sigma, prior_loc, prior_log_var;
};

// 1 / sigma_p, finite, from log var_p: its square may be beyond the range of the type.
template <class V>
FASTVI_HD V inverse_prior_scale_of(V log_var) {
  const V largest = broadcast<V>(largest_number<scalar_t<V>>());
  const V inverse = times(broadcast<V>(1), inverse_sigma_of<SpreadKind::log_var>(log_var));
  return select(inverse > largest, largest, inverse);
}

// `lift` is lift_of(sigma): the sum of d log sigma is lifted by it, for the scale is what it is
// divided by in the end.
template <class Kind, class V>
FASTVI_HD void rsample_accumulate(V eps, V loc, V sigma, V lift, V prior_loc, V inverse_prior_scale,
                                  V grad_z, V grad_q, V grad_p, V weight, bool path_only,
                                  RsampleSums<V>* sums) {
  V u = grad_z;
  if constexpr (Kind::log_p) {
    const V z = multiply_add<false>(sigma, eps, loc);
    V pull;
    if constexpr (Kind::prior) {
      const V distance = (z - prior_loc) * inverse_prior_scale;
      const V by_distance = grad_p * distance;
      pull = by_distance * inverse_prior_scale;
      sums->prior_loc = sums->prior_loc + pull;
      sums->prior_log_var = sums->prior_log_var +
                            broadcast<V>(0.5) * multiply_add<false>(by_distance, distance, -grad_p);
    } else {
      pull = grad_p * z;
    }
    u = u - pull;
  }
  V by_log_sigma = (sigma * lift) * u;
  const V lifted_q = grad_q * lift;
  if (Kind::log_p && path_only) {
    by_log_sigma = by_log_sigma - lifted_q * eps;
    // Of a sigma that is zero, as an exponential may be, log q has no slope at its mean either.
    const V divisor = max_number(sigma, broadcast<V>(smallest_number<scalar_t<V>>()));
    u = u - grad_q * eps / divisor;
  }
  by_log_sigma = by_log_sigma * eps;
  if constexpr (Kind::log_p) {
    u = u * weight;
    by_log_sigma = by_log_sigma * weight;
  }
  if (!Kind::log_p || !path_only) by_log_sigma = by_log_sigma - lifted_q;
  sums->loc = sums->loc + u;
  sums->log_sigma = sums->log_sigma + by_log_sigma;
}

// From the lifted sum of d log sigma to the derivative by the spread.
template <SpreadKind kind, class V>
FASTVI_HD V rsample_spread_derivative(V lifted, V sigma) {
  const V lift = lift_of(sigma);
  if constexpr (kind == SpreadKind::scale) return lifted / (sigma * lift);
  if constexpr (kind == SpreadKind::log_var) return broadcast<V>(0.5) * (lifted / lift);
  return lifted / lift;
}

FASTVI_ISA_END
}  // namespace fastvi
