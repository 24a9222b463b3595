// Element types as they lie in memory, and the type their arithmetic is done in.
#pragma once

#include "simd/macros.h"

namespace fastvi {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// float32 for everything up to float32, float64 for float64.
template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <class T>
using acc_t = typename AccumulateType<T>::type;

FASTVI_ISA_BEGIN

template <class To, class From>
FASTVI_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

FASTVI_HD float to_acc(float x) { return x; }
FASTVI_HD double to_acc(double x) { return x; }
FASTVI_HD float to_acc(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
FASTVI_HD float to_acc(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Subnormal halves are exact multiples of 2^-24; the others move their exponent by 127 - 15.
  const uint32_t small = bit_cast<uint32_t>(static_cast<float>(magnitude) * 5.9604644775390625e-8f);
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
  return bit_cast<float>(sign | (magnitude < 0x0400u ? small : normal));
#endif
}

template <class T>
FASTVI_HD T from_acc(acc_t<T> x) {
  return x;
}
template <>
FASTVI_HD bf16 from_acc<bf16>(float x) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t u = bit_cast<uint32_t>(x);
  // Round to nearest even; NaN stays NaN instead of rounding up to infinity.
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
#endif
}
template <>
FASTVI_HD f16 from_acc<f16>(float x) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    out = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 lets the float adder do the rounding to a multiple of 2^-24.
    out = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    out = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | out)};
#endif
}

FASTVI_ISA_END
}  // namespace fastvi

// Calls `...` with T bound to the element type.
#define FASTVI_SWITCH_DTYPE(dtype, T, ...) \
  switch (dtype) {                         \
    case ::fastvi::Dtype::f32: {           \
      using T = float;                     \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvi::Dtype::f64: {           \
      using T = double;                    \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvi::Dtype::bf16: {          \
      using T = ::fastvi::bf16;            \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case ::fastvi::Dtype::f16: {           \
      using T = ::fastvi::f16;             \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
  }
