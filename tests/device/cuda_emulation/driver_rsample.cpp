#include <array>

#include "driver.h"
#include "gaussian_rsample/gaussian_rsample.h"
#include "laplace_rsample/laplace_rsample.h"

namespace driver {
namespace {

using fastvi::RsampleParams;
using fastvi::SpreadKind;

enum class Prior { standard, shared, own };
enum class Law { normal, laplace };

struct Case {
  int64_t num_samples, batch, features;
  Dtype dtype;
  SpreadKind kind;
  Prior prior;
  bool path_only, weighted;
  int64_t skip;
  Law law = Law::normal;
  bool elementwise = false;
  bool numbered = false;  // samples by their numbers

  // What a log-density has of numbers for each sample and datum.
  int64_t densities() const {
    return elementwise ? features
                       : std::max<int64_t>(1, fastvi::ceil_div(features, fastvi::kRsampleSegment));
  }
};

struct Inputs {
  Array loc, spread, prior_loc, prior_log_var, grad_z, grad_log_q, grad_log_p, path_weight;
  int64_t key[2];
  std::vector<int64_t> numbers = {};
};

struct Outputs {
  Array z, log_q, log_p, grad_loc, grad_spread, grad_prior_loc, grad_prior_log_var;
};

Outputs compute(const std::string& what, bool cuda, const Case& c, const Inputs& in) {
  const Dtype acc = accumulate_type(c.dtype);
  const int64_t plane = c.batch * c.features, rows = c.num_samples * c.batch;
  RsampleParams p{};
  p.loc = in.loc.data();
  p.spread = in.spread.data();
  const bool prior = c.prior != Prior::standard;
  p.prior_stride = c.prior == Prior::own ? c.features : 0;
  const int64_t prior_size = c.prior == Prior::own ? plane : c.features;
  p.key = in.key;
  p.num_samples = c.num_samples;
  p.batch = c.batch;
  p.features = c.features;
  p.sample_offset = 3;
  p.sample_index = c.numbered ? in.numbers.data() : nullptr;
  p.dtype = c.dtype;
  p.spread_kind = c.kind;
  p.path_only = c.path_only;
  p.elementwise = c.elementwise;
  p.num_segments = std::max<int64_t>(1, fastvi::ceil_div(c.features, fastvi::kRsampleSegment));
  p.split_size = 3;
  p.num_splits = fastvi::ceil_div(c.num_samples, p.split_size);
  const Array sigma(acc, plane), inverse(acc, prior_size);
  const Array log_q_constant(acc, c.batch * c.densities()),
      log_p_constant(acc, c.batch * p.num_segments);
  const int64_t outputs = prior ? 4 : 2;
  const Array partial(acc, p.num_splits * outputs * plane);
  Outputs out{Array(c.dtype, rows * c.features, c.skip),
              Array(acc, rows * c.densities()),
              Array(acc, rows * p.num_segments),
              Array(acc, plane),
              Array(acc, plane),
              Array(acc, prior ? plane : 0),
              Array(acc, prior ? plane : 0)};
  p.sigma = sigma.data();
  p.log_q_constant = log_q_constant.data();
  p.log_p_constant = log_p_constant.data();
  if (prior) {
    p.prior_loc = in.prior_loc.data();
    p.prior_log_var = in.prior_log_var.data();
    p.inverse_prior_scale = inverse.data();
    p.grad_prior_loc = out.grad_prior_loc.data();
    p.grad_prior_log_var = out.grad_prior_log_var.data();
  }
  p.z = out.z.data();
  p.log_q = out.log_q.data();
  p.log_p = out.log_p.data();
  p.grad_z = in.grad_z.data();
  p.grad_log_q = in.grad_log_q.data();
  p.grad_log_p = in.grad_log_p.data();
  p.path_weight = c.weighted ? in.path_weight.data() : nullptr;
  p.partial = partial.data();
  p.grad_loc = out.grad_loc.data();
  p.grad_spread = out.grad_spread.data();
  const auto run_all = [&]<class Prepare, class Forward, class Backward, class Combine>() {
    run<Prepare>(what, cuda, p, c.batch * p.num_segments);
    run<Forward>(what, cuda, p, rows * p.num_segments);
    run<Backward>(what, cuda, p, p.num_splits * c.batch * p.num_segments);
    run<Combine>(what, cuda, p, plane);
  };
  if (c.law == Law::laplace) {
    run_all
        .template operator()<fastvi::laplace_rsample_prepare, fastvi::laplace_rsample,
                             fastvi::laplace_rsample_backward, fastvi::laplace_rsample_combine>();
  } else {
    run_all
        .template operator()<fastvi::gaussian_rsample_prepare, fastvi::gaussian_rsample,
                             fastvi::gaussian_rsample_backward, fastvi::gaussian_rsample_combine>();
  }
  return out;
}

void check(const Case& c) {
  const std::string law = c.law == Law::laplace ? "laplace_rsample " : "gaussian_rsample ";
  const std::string what = law + name_of(c.dtype) + (c.elementwise ? " each" : "") +
                           (c.numbered ? " numbered" : "") + " K " + std::to_string(c.num_samples) +
                           " B " + std::to_string(c.batch) + " D " + std::to_string(c.features);
  const Dtype acc = accumulate_type(c.dtype);
  const int64_t plane = c.batch * c.features, rows = c.num_samples * c.batch;
  const int64_t prior_size = c.prior == Prior::own ? plane : c.features;
  const Inputs in{Array::random(c.dtype, plane, -1, 1, c.skip),
                  Array::random(c.dtype, plane, 0.5, 1.5, c.skip),
                  Array::random(c.dtype, prior_size, -1, 1),
                  Array::random(c.dtype, prior_size, -1, 1),
                  Array::random(c.dtype, rows * c.features, -1, 1, c.skip),
                  Array::random(acc, c.elementwise ? rows * c.features : rows, -1, 1),
                  Array::random(acc, rows, -1, 1),
                  Array::random(acc, rows, 0, 1),
                  {-8086421385729462111, 77},
                  some_numbers(rows)};
  const Outputs expected = compute(what, false, c, in), got = compute(what, true, c, in),
                again = compute(what, true, c, in);
  const std::pair<const char*, Array Outputs::*> parts[] = {
      {" z", &Outputs::z},
      {" log_q", &Outputs::log_q},
      {" log_p", &Outputs::log_p},
      {" grad_loc", &Outputs::grad_loc},
      {" grad_spread", &Outputs::grad_spread},
      {" grad_prior_loc", &Outputs::grad_prior_loc},
      {" grad_prior_log_var", &Outputs::grad_prior_log_var}};
  for (const auto& [name, part] : parts) {
    compare(what + name, got.*part, expected.*part);
    compare_bits(what + name, again.*part, got.*part);
  }
}

// With loc = 0 and sigma = 1 the sample is the noise, whose float32 bits are the same everywhere.
void check_noise(int64_t num_samples, int64_t batch, int64_t features, Law law = Law::normal) {
  const Case c{num_samples,     batch, features, Dtype::f32, SpreadKind::scale,
               Prior::standard, false, false,    0,          law};
  const int64_t plane = batch * features, rows = num_samples * batch;
  const Inputs in{Array::random(Dtype::f32, plane, 0, 0),
                  Array::random(Dtype::f32, plane, 1, 1),
                  Array(Dtype::f32, 0),
                  Array(Dtype::f32, 0),
                  Array::random(Dtype::f32, rows * features, 0, 1),
                  Array::random(Dtype::f32, rows, 0, 1),
                  Array::random(Dtype::f32, rows, 0, 1),
                  Array(Dtype::f32, 0),
                  {1234567, -1}};
  compare_bits("noise", compute("noise", true, c, in).z, compute("noise", false, c, in).z);
}

}  // namespace

void rsample_cases() {
  const auto f32 = Dtype::f32, f64 = Dtype::f64, bf16 = Dtype::bf16, f16 = Dtype::f16;
  using enum Prior;
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) {
      for (const Prior prior : {standard, own, shared}) {
        check({3, 2, n, dtype, SpreadKind::log_var, prior, n % 2 == 0, n % 3 == 0, n % 3});
      }
      check({3, 2, n, dtype, SpreadKind::scale, standard, false, false, n % 2, Law::laplace,
             n % 3 == 0});
      check({3, 2, n, dtype, SpreadKind::log_scale, standard, false, false, n % 2, Law::normal,
             true});
    }
  }
  check({1, 1, 1, f32, SpreadKind::scale, standard, false, false, 0});
  check({3, 2, 0, f32, SpreadKind::log_var, own, false, false, 0});
  check({7, 5, 50, f32, SpreadKind::log_var, standard, true, true, 0});
  check({5, 4, 64, f32, SpreadKind::log_scale, own, false, false, 0});
  check({4, 3, 64, f32, SpreadKind::log_var, shared, true, true, 1});
  check({60, 70, 2, bf16, SpreadKind::log_var, standard, false, false, 0});
  check({4, 3, 23, f64, SpreadKind::scale, own, true, false, 0});
  check({3, 2, 517, f16, SpreadKind::log_var, shared, false, false, 0});
  check({2, 1, 4103, f32, SpreadKind::log_scale, own, true, true, 0});
  for (const bool each : {false, true}) {
    check({5, 4, 64, f32, SpreadKind::log_scale, standard, false, false, 0, Law::laplace, each});
    check({3, 2, 23, f64, SpreadKind::scale, standard, false, false, 1, Law::laplace, each});
    check({2, 1, 4103, bf16, SpreadKind::log_scale, standard, false, false, 0, Law::laplace, each});
  }
  check({7, 5, 50, f32, SpreadKind::scale, standard, false, false, 1, Law::normal, true});
  check({3, 2, 16, f16, SpreadKind::scale, standard, false, false, 0, Law::normal, true});
  // Rows of pairs, data that come again within a tile, and several passes of one.
  for (const Dtype dtype : kDtypes) {
    check({90, 3, 6, dtype, SpreadKind::scale, own, true, true, 0});
    check({5, 4, 10, dtype, SpreadKind::log_var, standard, false, false, 0, Law::laplace, true});
  }
  check({700, 13, 62, f32, SpreadKind::log_var, standard, false, false, 0});
  for (const Law law : {Law::normal, Law::laplace}) {
    for (const auto& [k, b, n] :
         {std::array<int64_t, 3>{7, 5, 50}, {40, 9, 2}, {3, 70, 17}, {2, 2, 4103}}) {
      check({k, b, n, f32, SpreadKind::log_scale, standard, false, false, 1, law, false, true});
      check({k, b, n, f64, SpreadKind::scale, standard, false, false, 0, law, true, true});
    }
  }
  check({5, 3, 23, bf16, SpreadKind::log_var, own, true, true, 0, Law::normal, false, true});
  check_noise(40, 3, 17, Law::laplace);
  check_noise(40, 3, 17);
  check_noise(9, 70, 7);
  check_noise(2, 2, 4100);
  check_noise(3, 2, 516);
}

}  // namespace driver
