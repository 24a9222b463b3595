// The words in which all maths here is written, for one number: on the host, and on the device.
// simd/simd.h says the same words for a vector of numbers, so a formula is written once.
//
// No formula may be contracted behind our back: the sources are compiled with -ffp-contract=off
// and --fmad=false, and every fused multiply-add is spelled fma. That is what makes the float32
// noise the same bits on every machine.
#pragma once

#include <cmath>

#include "simd/elements.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class V>
struct Traits;
template <>
struct Traits<float> {
  using Scalar = float;
  using Int = int32_t;
  using Uint = uint32_t;
  static constexpr int lanes = 1;
};
template <>
struct Traits<double> {
  using Scalar = double;
  using Int = int64_t;
  using Uint = uint64_t;
  static constexpr int lanes = 1;
};

template <class V>
using scalar_t = typename Traits<V>::Scalar;
template <class V>
using int_t = typename Traits<V>::Int;

FASTVI_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
FASTVI_HD double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}
FASTVI_HD float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
FASTVI_HD double sqrt(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

template <class V>
FASTVI_HD V select(bool mask, V a, V b) {
  return mask ? a : b;
}
template <class V>
FASTVI_HD V broadcast(scalar_t<V> x) {
  if constexpr (Traits<V>::lanes == 1) {
    return x;
  } else {
    return x - V{};
  }
}

FASTVI_HD float to_float(int32_t i) { return static_cast<float>(i); }
FASTVI_HD double to_float(int64_t i) { return static_cast<double>(i); }

// The float nearest to a 32-bit word.
FASTVI_HD float nearest_float(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __uint2float_rn(word);
#else
  return static_cast<float>(word);
#endif
}

// Whether a condition holds anywhere: what is rare can have a branch of its own.
FASTVI_HD bool any(bool mask) { return mask; }

// A formula of two numbers, computed in double.
template <class F>
FASTVI_HD double in_double(F formula, double a, double b) {
  return formula(a, b);
}
template <class F>
FASTVI_HD float in_double(F formula, float a, float b) {
  return static_cast<float>(formula(static_cast<double>(a), static_cast<double>(b)));
}

// p * 2^n for a p in [1/2, 2] and any integer-valued n whose result is zero, normal or infinite.
FASTVI_HD float scale_by_power(float p, float, int32_t n) {
  return bit_cast<float>(bit_cast<uint32_t>(p) + (static_cast<uint32_t>(n) << 23));
}
FASTVI_HD double scale_by_power(double p, double, int64_t n) {
  return bit_cast<double>(bit_cast<uint64_t>(p) + (static_cast<uint64_t>(n) << 52));
}

FASTVI_ISA_END
}  // namespace fastvi
