// The CPU kernels of engines/row_sum.h for a family: what an op's kernel file calls.
#pragma once

#include "engines/row_sum_each_cpu.h"
#include "engines/row_sum_over_rows_cpu.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class Family, class S>
void row_sum_backward_in(const RowSumParams& p, int64_t begin, int64_t end) {
  if (p.cut.period == 0) return RowSumCpu<Family, S>(p).backward(begin, end);
  RowSumsCpu<Family, S> sums(p);
  for (int64_t task = begin; task < end; ++task) sums.task(task);
}

template <class Family>
void row_sum_forward(const RowSumParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? RowSumCpu<Family, double>(p).forward(begin, end)
                        : RowSumCpu<Family, float>(p).forward(begin, end);
}
// Of a family that is only asked for its value at each element.
template <class Family>
void row_sum_elements(const RowSumParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? RowSumCpu<Family, double>(p).forward_elements(begin, end)
                        : RowSumCpu<Family, float>(p).forward_elements(begin, end);
}
template <class Family>
void row_sum_backward(const RowSumParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? row_sum_backward_in<Family, double>(p, begin, end)
                        : row_sum_backward_in<Family, float>(p, begin, end);
}

FASTVI_ISA_END
}  // namespace fastvi
