#include <type_traits>

#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "driver.h"
#include "gaussian_kl/gaussian_kl.h"
#include "gaussian_log_prob/gaussian_log_prob.h"
#include "laplace_log_prob/laplace_log_prob.h"
#include "poisson_log_prob/poisson_log_prob.h"
#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

namespace driver {
namespace {

using fastvi::RowSumParams;

// How an operand is broadcast: one row each, one row per datum, one row, one number per row, one
// number.
enum class Layout { full, datum, shared, column, number };

struct Case {
  int64_t num_samples, batch, features;
  std::vector<Layout> layouts;
  Dtype dtype, value_dtype;
  bool elementwise;
  int64_t skip;
  bool summed = false;  // the gradients of rows that serve several, over these
  int64_t rows() const { return num_samples * batch; }

  fastvi::RowCut cut() const {
    const bool has_data = std::count(layouts.begin(), layouts.end(), Layout::datum) != 0;
    fastvi::RowCut cut{};
    cut.period = has_data ? batch : 1;
    cut.repeats = rows() / cut.period;
    cut.data_chunks = std::min<int64_t>(2, cut.period);
    cut.repeat_chunks = std::min<int64_t>(2, cut.repeats);
    cut.at_once = 1;
    return cut;
  }
  // The rows of an operand's sums; 0 where its gradient is written by the element.
  int64_t sums(Layout layout) const {
    if (!summed) return 0;
    const fastvi::RowCut c = cut();
    return layout == Layout::datum    ? c.repeat_chunks * c.period
           : layout == Layout::shared ? c.repeat_chunks * c.data_chunks
                                      : 0;
  }
};

struct Outputs {
  Array out;
  std::vector<Array> grads;
};

template <class Params>
bool is_prepared(const Params& p) {
  if constexpr (requires { p.prepared; }) return p.prepared;
  return false;
}

template <class Forward, class Backward, class Params>
Outputs compute(const std::string& what, bool cuda, const Case& c, Params p,
                const std::vector<Array>& operands, const Array& grad_out) {
  const Dtype acc = accumulate_type(c.dtype);
  p.rows = c.rows();
  p.features = c.features;
  p.dtype = c.dtype;
  p.value_dtype = c.value_dtype;
  p.elementwise = c.elementwise;
  p.num_segments = fastvi::ceil_div(c.features, fastvi::kRowSegment);
  if (c.summed) p.cut = c.cut();
  std::vector<Array> recent;
  Outputs result{Array(acc, c.elementwise ? p.rows * c.features : p.rows * p.num_segments), {}};
  for (size_t i = 0; i < operands.size(); ++i) {
    auto& o = p.operands[i];
    const Layout layout = c.layouts[i];
    o.data = operands[i].data();
    const bool one = layout == Layout::number || layout == Layout::shared;
    o.period = one ? 1 : layout == Layout::datum ? c.batch : p.rows;
    o.stride = layout == Layout::number || layout == Layout::column ? 0 : 1;
    o.row_stride = one ? 0 : o.stride == 0 ? 1 : c.features;
    p.grad_in_acc[i] = layout != Layout::full;
    if (const int64_t sums = c.sums(layout); sums != 0) {
      p.grad_place[i] =
          layout == Layout::datum ? fastvi::GradPlace::data : fastvi::GradPlace::shared;
      p.total_in_double[i] = true;
      result.grads.emplace_back(Dtype::f64, sums * c.features);
      recent.emplace_back(acc, sums * c.features);
      p.recent[i] = recent.back().data();
    } else {
      result.grads.emplace_back(p.grad_in_acc[i] ? acc : operands[i].dtype(), p.rows * c.features);
    }
    // The derivative by the value is not a prepared family's, and its place stays as it is.
    if (i == 0 && is_prepared(p)) {
      p.grad_place[i] = fastvi::GradPlace::elements;
    } else {
      o.grad = result.grads.back().data();
    }
  }
  p.out = result.out.data();
  p.grad_out = grad_out.data();
  const int64_t tasks = p.rows * p.num_segments;
  run<Forward>(what, cuda, p, tasks);
  const int64_t chunks = p.num_segments * p.cut.data_chunks * p.cut.repeat_chunks;
  if constexpr (!std::is_void_v<Backward>) run<Backward>(what, cuda, p, c.summed ? chunks : tasks);
  return result;
}

template <class Forward, class Backward, class Params>
void check(const std::string& name, const Case& c, const Params& params, double low, double high) {
  const std::string what = name + " " + name_of(c.dtype) + " K " + std::to_string(c.num_samples) +
                           " B " + std::to_string(c.batch) + " F " + std::to_string(c.features) +
                           (c.elementwise ? " elementwise" : "") + (c.summed ? " summed" : "");
  std::vector<Array> operands;
  for (size_t i = 0; i < c.layouts.size(); ++i) {
    const Layout layout = c.layouts[i];
    const int64_t size = layout == Layout::full     ? c.rows() * c.features
                         : layout == Layout::datum  ? c.batch * c.features
                         : layout == Layout::shared ? c.features
                         : layout == Layout::column ? c.rows()
                                                    : 1;
    operands.push_back(Array::random(i == 0 ? c.value_dtype : c.dtype, size, low, high, c.skip));
  }
  const Array grad_out = Array::random(accumulate_type(c.dtype),
                                       c.elementwise ? c.rows() * c.features : c.rows(), -1, 1);
  const auto all = [&](bool cuda) {
    return compute<Forward, Backward>(what, cuda, c, params, operands, grad_out);
  };
  const Outputs expected = all(false), got = all(true), again = all(true);
  compare(what, got.out, expected.out);
  compare_bits(what, again.out, got.out);
  for (size_t i = 0; i < operands.size(); ++i) {
    const bool sums = c.sums(c.layouts[i]) != 0;
    compare(what + " grad " + std::to_string(i), got.grads[i], expected.grads[i],
            sums ? accumulate_type(c.dtype) : got.grads[i].dtype());
    compare_bits(what + " grad " + std::to_string(i), again.grads[i], got.grads[i]);
  }
}

void bernoulli(const Case& c) {
  check<fastvi::bernoulli_log_prob, fastvi::bernoulli_log_prob_backward>("bernoulli_log_prob", c,
                                                                         RowSumParams{}, 0, 1);
}

void gaussian(const Case& c, fastvi::SpreadKind kind) {
  fastvi::GaussianLogProbParams params{};
  params.spread_kind = kind;
  check<fastvi::gaussian_log_prob, fastvi::gaussian_log_prob_backward>("gaussian_log_prob", c,
                                                                       params, 0.5, 1.5);
}

// A density with one parameter that is positive, or given as its logarithm.
template <class Forward, class Backward>
void density(const std::string& name, const Case& c, bool log_parameter) {
  fastvi::LogDensityParams params{};
  params.log_parameter = log_parameter;
  check<Forward, Backward>(name, c, params, 0.5, 1.5);
}
void laplace(const Case& c, bool log) {
  density<fastvi::laplace_log_prob, fastvi::laplace_log_prob_backward>("laplace_log_prob", c, log);
}
void poisson(const Case& c, bool log) {
  density<fastvi::poisson_log_prob, fastvi::poisson_log_prob_backward>("poisson_log_prob", c, log);
}
void negative_binomial(const Case& c, bool log) {
  density<fastvi::negative_binomial_log_prob, fastvi::negative_binomial_log_prob_backward>(
      "negative_binomial_log_prob", c, log);
}
// The log-gammas of a count and its dispersion, and the densities that are given them.
void term(const Case& c, fastvi::NegativeBinomialTerm kind, bool log) {
  fastvi::NegativeBinomialTermParams params{};
  params.term = static_cast<int32_t>(kind);
  params.log_dispersion = log;
  check<fastvi::negative_binomial_term, void>("negative_binomial_term", c, params, 0.5, 1.5);
}
template <class Forward, class Backward>
void prepared(const std::string& name, const Case& c, bool log) {
  fastvi::LogDensityParams params{};
  params.log_parameter = log;
  params.prepared = true;
  check<Forward, Backward>(name + " prepared", c, params, 0.5, 1.5);
}
// A card is given less than a CPU: the dispersion as it is or its logarithm, and no reciprocal. Of
// counts the quick family is right, of other values the careful one.
template <class Forward, class Backward>
void prepared_on_card(const std::string& name, const Case& c, bool log, bool counts) {
  fastvi::LogDensityParams params{};
  params.log_parameter = log;
  params.prepared = true;
  const std::string what = name + " prepared for a card " + name_of(c.dtype) + " F " +
                           std::to_string(c.features) + (counts ? " of counts" : "") +
                           (c.elementwise ? " elementwise" : "") + (c.summed ? " summed" : "");
  const auto size_of = [&](Layout layout) {
    return layout == Layout::shared ? c.features
           : layout == Layout::full ? c.rows() * c.features
                                    : c.batch * c.features;
  };
  const size_t term = c.layouts.size() - 1;
  Case on_cpu = c;
  on_cpu.layouts.insert(on_cpu.layouts.begin() + static_cast<int64_t>(term), Layout::datum);
  std::vector<Array> given, prepared;
  for (size_t i = 0; i <= term; ++i) {
    const int64_t size = size_of(c.layouts[i]);
    given.push_back(Array::random(c.dtype, size, 0.5, 1.5, c.skip));
    if (i == 0 && counts) {
      for (int64_t j = 0; j < size; ++j) given[0].set(j, std::floor(4 * given[0].get(j) - 2));
    }
  }
  for (size_t i = 0; i <= term + 1; ++i) {
    const Array& from = given[i < term ? i : i == term ? 0 : term];
    prepared.emplace_back(c.dtype, size_of(on_cpu.layouts[i]));
    for (int64_t j = 0; j < size_of(on_cpu.layouts[i]); ++j) {
      const double x = from.get(j);
      prepared[i].set(j, i == 2 && log ? std::exp(x) : i == term ? 1 / std::max(x, 1.0) : x);
    }
  }
  const Array grad_out =
      Array::random(c.dtype, c.elementwise ? c.rows() * c.features : c.rows(), -1, 1);
  const auto card = [&] {
    return compute<Forward, Backward>(what, true, c, params, given, grad_out);
  };
  const Outputs got = card(), again = card();
  const Outputs expected =
      compute<Forward, Backward>(what, false, on_cpu, params, prepared, grad_out);
  compare(what, got.out, expected.out);
  compare_bits(what, again.out, got.out);
  for (size_t i = 0; i < term; ++i) {
    compare(what + " grad " + std::to_string(i), got.grads[i], expected.grads[i], c.dtype);
    compare_bits(what + " grad " + std::to_string(i), again.grads[i], got.grads[i]);
  }
}
void zero_inflated(const Case& c, bool log) {
  density<fastvi::zero_inflated_negative_binomial_log_prob,
          fastvi::zero_inflated_negative_binomial_log_prob_backward>(
      "zero_inflated_negative_binomial_log_prob", c, log);
}

void prepared_cases(int64_t n, Dtype dtype) {
  using enum Layout;
  for (const bool log : {false, true}) {
    using fastvi::NegativeBinomialTerm;
    // A card is given nothing that is prepared in half precision, and no dispersion.
    if (!kDrivesCpu && accumulate_type(dtype) != dtype) return;
    for (const auto kind : {NegativeBinomialTerm::value, NegativeBinomialTerm::slope,
                            NegativeBinomialTerm::dispersion}) {
      if (kDrivesCpu || kind != NegativeBinomialTerm::dispersion)
        term({2, 3, n, {full, full}, dtype, dtype, true, n % 3}, kind, log);
    }
    using count = fastvi::negative_binomial_log_prob;
    using count_backward = fastvi::negative_binomial_log_prob_backward;
    using inflated = fastvi::zero_inflated_negative_binomial_log_prob;
    using inflated_backward = fastvi::zero_inflated_negative_binomial_log_prob_backward;
    const std::string name = "negative_binomial_log_prob", other = "zero_inflated_" + name;
    if (kDrivesCpu) {
      prepared<count, count_backward>(
          name, {3, 2, n, {datum, full, datum, datum, datum}, dtype, dtype, false, n % 2}, log);
      prepared<inflated, inflated_backward>(
          other, {2, 2, n, {datum, full, datum, full, datum, datum}, dtype, dtype, false, n % 2},
          log);
      continue;
    }
    for (const bool summed : {false, true}) {
      for (const bool counts : {false, true}) {
        const bool each = summed != counts;
        prepared_on_card<count, count_backward>(
            name, {3, 2, n, {datum, full, shared, datum}, dtype, dtype, each, n % 2, summed}, log,
            counts);
        prepared_on_card<inflated, inflated_backward>(
            other, {2, 2, n, {datum, full, shared, full, datum}, dtype, dtype, each, n % 2, summed},
            log, counts);
      }
    }
  }
}

void kl(const Case& c) {
  fastvi::GaussianKlParams params{};
  params.standard_prior = c.layouts.size() == 2;
  check<fastvi::gaussian_kl, fastvi::gaussian_kl_backward>("gaussian_kl", c, params, -1, 1);
}
void kl_of_scales(const Case& c) {
  fastvi::GaussianKlParams params{};
  params.of_scales = true;
  check<fastvi::gaussian_kl, fastvi::gaussian_kl_backward>("gaussian_kl of scales", c, params, 0.5,
                                                           1.5);
}

}  // namespace

void row_sum_cases() {
  using enum Layout;
  using fastvi::SpreadKind;
  const auto f32 = Dtype::f32, f64 = Dtype::f64, bf16 = Dtype::bf16, f16 = Dtype::f16;
  bernoulli({1, 1, 1, {full, full}, f32, f32, false, 0});
  bernoulli({5, 3, 784, {datum, full}, f32, f32, false, 0});
  bernoulli({3, 3, 784, {datum, full}, bf16, f32, false, 0});
  bernoulli({4, 5, 50, {datum, full}, f16, f16, false, 0});
  bernoulli({2, 7, 33, {full, full}, f64, f64, false, 0});
  bernoulli({3, 4, 64, {datum, column}, f32, f32, true, 0});
  bernoulli({2, 2, 64, {datum, full}, f32, f32, false, 1});
  bernoulli({1, 2, 2100, {datum, full}, f32, f32, false, 0});
  bernoulli({1, 2, 16388, {datum, full}, f32, f32, false, 0});
  gaussian({4, 3, 50, {full, datum, datum}, f32, f32, false, 0}, SpreadKind::log_var);
  gaussian({4, 30, 3, {datum, full, number}, f32, f32, false, 0}, SpreadKind::scale);
  gaussian({2, 3, 784, {datum, full, full}, bf16, bf16, false, 0}, SpreadKind::log_scale);
  gaussian({2, 3, 20, {datum, full, number}, f64, f64, true, 0}, SpreadKind::log_var);
  gaussian({2, 3, 40, {datum, column, number}, f16, f32, true, 0}, SpreadKind::scale);
  laplace({3, 4, 50, {datum, full, number}, f32, f32, false, 0}, false);
  laplace({2, 3, 33, {datum, full, datum}, bf16, f32, false, 0}, true);
  poisson({3, 4, 50, {datum, full}, f32, f32, false, 0}, false);
  poisson({2, 3, 20, {datum, full}, f64, f64, true, 0}, true);
  negative_binomial({3, 2, 100, {datum, full, number}, f32, f32, false, 0}, false);
  negative_binomial({2, 3, 33, {datum, full, full}, f32, f32, false, 1}, true);
  negative_binomial({2, 2, 20, {datum, full, full}, f64, f64, true, 0}, true);
  zero_inflated({3, 2, 100, {datum, full, number, full}, f32, f32, false, 0}, false);
  zero_inflated({2, 3, 21, {datum, full, full, column}, f16, f32, false, 0}, true);
  zero_inflated({2, 2, 8, {datum, full, full, full}, f64, f64, true, 0}, false);
  kl({1, 20, 50, {full, full}, f32, f32, false, 0});
  kl({1, 20, 8, {full, full}, f64, f64, false, 0});
  kl({2, 5, 40, {full, full, datum, number}, f32, f32, false, 0});
  kl({2, 5, 19, {full, full, datum, datum}, bf16, bf16, false, 1});
  bernoulli({5, 3, 50, {datum, shared}, f32, f32, false, 0, true});
  gaussian({4, 3, 40, {full, datum, datum}, f32, f32, false, 0, true}, SpreadKind::log_var);
  gaussian({130, 2, 24, {datum, full, shared}, f32, f32, false, 0, true}, SpreadKind::log_scale);
  gaussian({1, 7, 40, {full, full, shared}, bf16, f32, false, 0, true}, SpreadKind::log_var);
  gaussian({3, 2, 40, {full, datum, number}, f64, f64, true, 0, true}, SpreadKind::scale);
  laplace({3, 4, 33, {full, full, shared}, f32, f32, false, 1, true}, true);
  poisson({3, 4, 50, {datum, datum}, f16, f16, false, 0, true}, true);
  negative_binomial({5, 2, 28, {datum, full, shared}, f32, f32, false, 0, true}, false);
  zero_inflated({3, 2, 28, {datum, full, shared, column}, f32, f32, true, 0, true}, false);
  if (!kDrivesCpu) {
    prepared_cases(28, f32);
    prepared_cases(33, f64);
  }
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) {
      const Dtype value = n % 2 == 0 && dtype != f64 ? f32 : dtype;
      for (const bool each : {false, true}) {
        const Layout layout = each ? column : full;
        bernoulli({3, 2, n, {datum, full}, dtype, value, each, n % 3});
        gaussian({2, 3, n, {full, datum, number}, dtype, value, each, n % 3}, SpreadKind::log_var);
        gaussian({2, 3, n, {datum, full, layout}, dtype, value, each, n % 2}, SpreadKind::scale);
        gaussian({2, 3, n, {datum, full, full}, dtype, value, each, n % 3}, SpreadKind::log_scale);
        laplace({2, 3, n, {datum, full, number}, dtype, value, each, n % 3}, !each);
        poisson({3, 2, n, {datum, layout}, dtype, value, each, n % 3}, each);
        negative_binomial({2, 2, n, {datum, full, number}, dtype, value, each, n % 2}, each);
        zero_inflated({2, 2, n, {datum, full, layout, number}, dtype, value, each, n % 2}, each);
        bernoulli({3, 2, n, {datum, shared}, dtype, value, each, n % 3, true});
        for (const auto kind : {SpreadKind::scale, SpreadKind::log_scale, SpreadKind::log_var})
          gaussian({3, 2, n, {full, datum, shared}, dtype, value, each, n % 3, true}, kind);
        laplace({2, 3, n, {full, full, shared}, dtype, value, each, n % 3, true}, each);
        poisson({3, 2, n, {datum, datum}, dtype, value, each, n % 3, true}, each);
        negative_binomial({2, 2, n, {datum, full, shared}, dtype, value, each, n % 2, true}, each);
        zero_inflated({2, 2, n, {datum, full, shared, layout}, dtype, value, each, n % 2, true},
                      each);
      }
      prepared_cases(n, dtype);
      kl({2, 3, n, {full, full}, dtype, dtype, false, n % 3});
      kl({2, 3, n, {full, full, datum, number}, dtype, dtype, false, n % 2});
      kl_of_scales({2, 3, n, {full, full, datum, number}, dtype, dtype, false, n % 3});
      kl({2, 3, n, {datum, full}, dtype, dtype, false, n % 3, true});
      kl({2, 3, n, {full, full, datum, shared}, dtype, dtype, false, n % 2, true});
      kl_of_scales({2, 3, n, {full, datum, datum, shared}, dtype, dtype, false, n % 3, true});
    }
  }
}

}  // namespace driver
