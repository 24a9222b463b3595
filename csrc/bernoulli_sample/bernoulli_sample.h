// bernoulli_sample: x = 1 where the logit l is above logistic noise, with log p(x) in the same
// pass.
//
// The noise of sample k, datum b, feature d comes from one word of the Philox block of its place,
// see noise/philox.h, and P(x = 1) = sigmoid(l). log p(x) is that of bernoulli_log_prob, and so is
// its gradient; the samples have none.
#pragma once

#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "noise/logistic.h"

namespace fastvi {

struct BernoulliSampleParams {
  const void* logits;  // [logits_rows, D], dtype; row r of the samples has row r % logits_rows
  const int64_t* key;  // [2] seed, stream; where the data is
  int64_t rows, logits_rows, features;  // K * B, B or K * B, D
  SampleRows samples;                   // of B data
  Dtype dtype;
  bool elementwise;  // the log-probability of each feature, not their sum

  // Features are cut in segments; one, unless a row is long.
  int64_t num_segments;  // of kSampleSegment features
  void* value;           // [K, B, D], dtype
  void* log_prob;        // [K, B, num_segments], or [K, B, D], accumulation type
};

inline constexpr int64_t kSampleSegment = 4096;

FASTVI_DECLARE_KERNEL(bernoulli_sample, BernoulliSampleParams);  // tasks: K * B * num_segments

}  // namespace fastvi
