#include "bernoulli_sample/bernoulli_sample.h"
#include "driver.h"

namespace driver {
namespace {

struct Case {
  int64_t num_samples, batch, features;
  Dtype dtype;
  bool shared_logits;  // one row of logits for each datum, not for each of its samples
  int64_t skip;
  bool elementwise = false;
  bool numbered = false;  // samples by their numbers
};

struct Outputs {
  Array value, log_prob;
};

void check(const Case& c) {
  const std::string what = std::string("bernoulli_sample ") + name_of(c.dtype) + " K " +
                           std::to_string(c.num_samples) + " B " + std::to_string(c.batch) + " D " +
                           std::to_string(c.features);
  const Dtype acc = accumulate_type(c.dtype);
  const int64_t rows = c.num_samples * c.batch;
  const int64_t own = c.shared_logits ? c.batch : rows;
  const Array logits = Array::random(c.dtype, own * c.features, -3, 3, c.skip);
  const int64_t key[2] = {0x0123456789abcdef, 77};
  const auto numbers = some_numbers(rows);
  const auto compute = [&](bool cuda) {
    fastvi::BernoulliSampleParams p{};
    p.num_segments = fastvi::ceil_div(c.features, fastvi::kSampleSegment);
    Outputs result{Array(c.dtype, rows * c.features, c.skip),
                   Array(acc, rows * (c.elementwise ? c.features : p.num_segments))};
    p.elementwise = c.elementwise;
    p.logits = logits.data();
    p.key = key;
    p.rows = rows;
    p.logits_rows = own;
    p.features = c.features;
    p.samples = {c.numbered ? numbers.data() : nullptr, 3, c.batch};
    p.dtype = c.dtype;
    p.value = result.value.data();
    p.log_prob = result.log_prob.data();
    run<fastvi::bernoulli_sample>(what, cuda, p, rows * p.num_segments);
    return result;
  };
  const Outputs expected = compute(false), got = compute(true), again = compute(true);
  compare_bits(what, got.value, expected.value);
  compare(what + " log_prob", got.log_prob, expected.log_prob);
  compare_bits(what + " log_prob", again.log_prob, got.log_prob);
}

}  // namespace

void bernoulli_sample_cases() {
  const auto f32 = Dtype::f32, f64 = Dtype::f64, bf16 = Dtype::bf16, f16 = Dtype::f16;
  check({1, 1, 1, f32, false, 0});
  check({5, 7, 13, f32, true, 0});
  check({2, 3, 300, f32, false, 1});
  check({1, 2, 4099, f32, true, 0});
  check({2, 3, 33, f64, false, 0});
  check({2, 4, 17, bf16, true, 0});
  check({2, 4, 100, f16, false, 1});
  check({3, 5, 19, f32, true, 1, true});
  check({9, 7, 13, f32, true, 0, false, true});
  check({2, 3, 4100, f64, false, 0, false, true});
  check({3, 5, 19, bf16, true, 1, true, true});
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) {
      check({3, 2, n, dtype, n % 2 == 0, n % 3});
      check({2, 3, n, dtype, n % 2 == 1, n % 3, true});
    }
  }
}

}  // namespace driver
