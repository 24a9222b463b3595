#include "negative_binomial_log_prob/negative_binomial_card.h"
#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Where a count and its dispersion meet many means, see NegativeBinomialCardFamily.
// Value x, mean m, inverse dispersion t or log t, gate g, term.
template <bool log_dispersion>
struct ZeroInflatedNegativeBinomialCardFamily : CountsOnCard<5> {
  using Count = NegativeBinomialCardFamily<log_dispersion>;

  template <class V>
  static FASTVI_HD V value(const V (&x)[5]) {
    const V n = negative_binomial_sum(x[0], Count::shape(x[0], x[1], x[2]), x[4]);
    return zero_inflated_value(x[0], n, x[3]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[5], V (&d)[5]) {
    const auto shape = Count::shape(x[0], x[1], x[2]);
    negative_binomial_parameters<log_dispersion>(x[0], shape, x[4], &d[1], &d[2]);
    d[0] = d[4] = broadcast<V>(0);
    zero_inflated_derivatives(x[0], density_of_none(shape), x[3], &d[0], &d[1], &d[2], &d[3]);
  }
  template <class V>
  using Sum = PlainSum<ZeroInflatedNegativeBinomialCardFamily, V>;

  struct Quick {
    static constexpr int arity = 5;
    template <class V>
    static FASTVI_HD V value(const V (&x)[5], bool* right) {
      const OrdinaryShape<log_dispersion, V> shape(x[0], x[1], x[2]);
      *right = shape.right;
      return zero_inflated_value(x[0], shape.value(x[0], x[1], x[4]), x[3]);
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[5], V (&d)[5]) {
      const OrdinaryShape<log_dispersion, V> shape(x[0], x[1], x[2]);
      const V empty = shape.parameters(x[0], x[1], x[4], &d[1], &d[2]);
      d[0] = d[4] = broadcast<V>(0);
      zero_inflated_derivatives(x[0], empty, x[3], &d[0], &d[1], &d[2], &d[3]);
    }
    template <class V>
    using Sum = CheckedSum<Quick, V>;
  };
};

FASTVI_ISA_END
namespace {

template <bool backward>
constexpr auto launch = launch_counts<ZeroInflatedNegativeBinomialFamily,
                                      ZeroInflatedNegativeBinomialCardFamily, backward>;

}  // namespace

const char* zero_inflated_negative_binomial_log_prob::cuda(const LogDensityParams& p,
                                                           void* stream) {
  return launch<false>(p, stream);
}
const char* zero_inflated_negative_binomial_log_prob_backward::cuda(const LogDensityParams& p,
                                                                    void* stream) {
  return launch<true>(p, stream);
}

}  // namespace fastvi
