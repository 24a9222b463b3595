#include "gaussian_log_prob/gaussian_log_prob.h"

#include "engines/row_sum_cpu.h"

namespace fastvi {

void gaussian_log_prob::FASTVI_ISA(const GaussianLogProbParams& p, int64_t begin, int64_t end) {
  // The value needs 1 / sigma and log sigma, however the spread was given.
  if (p.prepared) return row_sum_forward<PreparedGaussianFamily<SpreadKind::scale>>(p, begin, end);
  FASTVI_SWITCH_SPREAD(p.spread_kind, kind, row_sum_forward<GaussianFamily<kind>>(p, begin, end))
}
void gaussian_log_prob_backward::FASTVI_ISA(const GaussianLogProbParams& p, int64_t begin,
                                            int64_t end) {
  FASTVI_SWITCH_SPREAD(p.spread_kind, kind, {
    if (p.prepared) return row_sum_backward<PreparedGaussianFamily<kind>>(p, begin, end);
    row_sum_backward<GaussianFamily<kind>>(p, begin, end);
  })
}

}  // namespace fastvi
