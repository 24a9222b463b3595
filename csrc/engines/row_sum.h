// Sums over features of a function of a few operands: what every log-density and the closed-form
// divergence are. A family is a functor with
//   arity                     the number of operands, at most kMaxOperands
//   value(x)                  the function at one element (or at a vector of them)
//   derivatives(x, d)         its derivative with respect to each operand
//   Sum<V>                    an accumulator: add(x), flush(), total
//   Quick                     if there is one: a family whose value and derivatives are right where
//                             they are finite, and not otherwise; what is not is taken again by the
//                             family itself
//   kIsHeavy                  if there: its formula is long; on a CPU it stands in the loop that
//                             writes its results, and sums are taken of these
//   kIsPrepared               if there: its last operand belongs to an element, not to a row, and
//                             nobody asks for the derivative by the first
//   kPrepares                 if there: what it writes is that operand, for the launch behind it
// and this file says how operands are laid out and how the work is cut.
#pragma once

#include "maths/math.h"

namespace fastvi {

inline constexpr int kMaxOperands = 6;

template <class Family>
inline constexpr bool kRowsArePrepared = requires { Family::kIsPrepared; };

// An operand of shape [period, F], [period, 1] or [1, 1] that is read as [R, F]: row r of the work
// is row r % period of the operand, and broadcasting never copies it.
struct Operand {
  const void* data;
  void* grad;  // null where nobody asks for it
  int64_t period;
  int64_t row_stride;  // elements; 0 where all rows are one
  int64_t stride;      // elements between features: 1, or 0 where one number serves all
};

// Where the gradient of an operand goes. Sums, see RowCut, are short ones in the accumulation type,
// which then meet in float64. A card takes those over rows alone, of operands with a stride.
enum class GradPlace : int32_t {
  elements,  // [R, F], as the whole work
  rows,      // [R, num_segments]: one number serves a row
  data,      // [repeat_chunks, period, F or num_segments]: rows repeat
  shared,    // [repeat_chunks * data_chunks, F or num_segments]: one row serves all
};

// How the rows are cut where gradients are summed over them. Row r is repeat r / period of datum
// r % period. A task is a segment of features of a chunk of the data and of the repeats, and owns
// its part of every sum: what is added to what depends on shapes alone. Of a chunk it takes
// `at_once` data through all repeats, while what belongs to them stays in cache.
struct RowCut {
  int64_t period, repeats;
  int64_t data_chunks, repeat_chunks;
  int64_t at_once;
};

struct RowSumParams {
  Operand operands[kMaxOperands];
  int64_t rows, features;
  // Operand 0, the value, may be float32 where the parameters are bfloat16 or float16.
  Dtype value_dtype, dtype;
  // Broadcast operands get their gradient in the accumulation type, to be summed afterwards.
  bool grad_in_acc[kMaxOperands];
  GradPlace grad_place[kMaxOperands];
  void* recent[kMaxOperands];  // room for the short sums of `data` and `shared`, where not uniform
  bool total_in_double[kMaxOperands];  // of `data` and `shared`; else in the accumulation type
  RowCut cut;                          // period 0 where no gradient is summed
  bool elementwise;
  int64_t num_segments;  // of kRowSegment features
  void* out;             // [R, num_segments], or [R, F] where elementwise; accumulation type
  const void* grad_out;  // [R], or [R, F] where elementwise; accumulation type
};

inline constexpr int64_t kRowSegment = 16384;

FASTVI_HD int64_t operand_row(const Operand& o, int64_t row) {
  return o.row_stride == 0 ? 0 : (row < o.period ? row : row % o.period) * o.row_stride;
}

FASTVI_ISA_BEGIN

// A derivative times what comes back: nothing where nothing comes back, as from a sample without
// weight, for such a one may have an infinite derivative.
template <class V>
FASTVI_HD V sent_on(V derivative, V grad) {
  const V zero = broadcast<V>(0);
  return select(grad == zero, zero, derivative * grad);
}

template <class Family>
struct QuickOf {
  using type = Family;
};
template <class Family>
  requires requires { typename Family::Quick; }
struct QuickOf<Family> {
  using type = typename Family::Quick;
};

// The accumulator of a family that has nothing better.
template <class Family, class V>
struct PlainSum {
  V recent = broadcast<V>(0);
  V total = broadcast<V>(0);
  FASTVI_HD void add(const V (&x)[Family::arity]) { recent = recent + Family::value(x); }
  // Called at least every 64 additions: short sums of sums keep float32 accurate.
  FASTVI_HD void flush() {
    total = total + recent;
    recent = broadcast<V>(0);
  }
};

FASTVI_ISA_END
}  // namespace fastvi

// Calls `...` with TV, T bound to the element types of the value and of the parameters.
#define FASTVI_SWITCH_VALUE_DTYPE(params, TV, T, ...)                     \
  FASTVI_SWITCH_DTYPE((params).dtype, T, {                                \
    if (sizeof(T) == 2 && (params).value_dtype == ::fastvi::Dtype::f32) { \
      using TV = ::fastvi::acc_t<T>;                                      \
      __VA_ARGS__;                                                        \
    } else {                                                              \
      using TV = T;                                                       \
      __VA_ARGS__;                                                        \
    }                                                                     \
  })
