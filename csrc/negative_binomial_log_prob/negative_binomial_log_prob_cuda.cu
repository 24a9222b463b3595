#include "negative_binomial_log_prob/negative_binomial_card.h"

namespace fastvi {
namespace {

template <bool backward>
constexpr auto launch = launch_counts<NegativeBinomialFamily, NegativeBinomialCardFamily, backward>;

template <NegativeBinomialTerm term>
const char* launch_term(const NegativeBinomialTermParams& p, void* stream) {
  return p.log_dispersion
             ? launch_prepared_row_sum<NegativeBinomialTermFamily<term, true>, false>(p, stream)
             : launch_prepared_row_sum<NegativeBinomialTermFamily<term, false>, false>(p, stream);
}

}  // namespace

const char* negative_binomial_log_prob::cuda(const LogDensityParams& p, void* stream) {
  return launch<false>(p, stream);
}
const char* negative_binomial_log_prob_backward::cuda(const LogDensityParams& p, void* stream) {
  return launch<true>(p, stream);
}
const char* negative_binomial_term::cuda(const NegativeBinomialTermParams& p, void* stream) {
  switch (static_cast<NegativeBinomialTerm>(p.term)) {
    case NegativeBinomialTerm::value:
      return launch_term<NegativeBinomialTerm::value>(p, stream);
    case NegativeBinomialTerm::slope:
      return launch_term<NegativeBinomialTerm::slope>(p, stream);
    case NegativeBinomialTerm::dispersion:
      return "negative_binomial_term: a card reads the dispersion as it was given";
  }
  return "negative_binomial_term: unknown term";
}

}  // namespace fastvi
