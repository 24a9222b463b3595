// The vocabulary of simd/real.h for a vector of numbers: as wide as the instruction set that this
// source is compiled for. Built on the vector extension of GCC and Clang; intrinsics only where the
// extension has no word for it.
#pragma once

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "simd/real.h"

namespace fastvi {
FASTVI_ISA_BEGIN

#if defined(__AVX512F__)
#define FASTVI_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTVI_VECTOR_BYTES 32
#else
#define FASTVI_VECTOR_BYTES 16
#endif
#define FASTVI_VECTOR(T) T __attribute__((vector_size(FASTVI_VECTOR_BYTES)))

typedef FASTVI_VECTOR(float) f32v;
typedef FASTVI_VECTOR(double) f64v;
typedef FASTVI_VECTOR(int32_t) i32v;
typedef FASTVI_VECTOR(uint32_t) u32v;
typedef FASTVI_VECTOR(int64_t) i64v;
typedef FASTVI_VECTOR(uint64_t) u64v;
// As many 16-bit words as f32v has lanes.
typedef uint16_t u16v __attribute__((vector_size(FASTVI_VECTOR_BYTES / 2)));
// As many floats as f64v has lanes.
typedef float f32h __attribute__((vector_size(FASTVI_VECTOR_BYTES / 2)));

template <>
struct Traits<f32v> {
  using Scalar = float;
  using Int = i32v;
  using Uint = u32v;
  static constexpr int lanes = FASTVI_VECTOR_BYTES / 4;
};
template <>
struct Traits<f64v> {
  using Scalar = double;
  using Int = i64v;
  using Uint = u64v;
  static constexpr int lanes = FASTVI_VECTOR_BYTES / 8;
};

// The vector that the arithmetic on elements of type T is done in.
template <class Acc>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = f32v;
};
template <>
struct VectorOf<double> {
  using type = f64v;
};
template <class T>
using vec_t = typename VectorOf<acc_t<T>>::type;

template <class V>
FASTVI_HD V select(int_t<V> mask, V a, V b) {
  return mask ? a : b;
}

FASTVI_HD f32v to_float(i32v i) { return __builtin_convertvector(i, f32v); }
FASTVI_HD f64v to_float(i64v i) { return __builtin_convertvector(i, f64v); }

#if defined(__AVX512F__)
FASTVI_HD bool any(i32v mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
FASTVI_HD bool any(i64v mask) { return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0; }
#elif defined(__AVX2__)
FASTVI_HD bool any(i32v mask) { return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0; }
FASTVI_HD bool any(i64v mask) { return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0; }
#elif defined(__SSE2__)
FASTVI_HD bool any(i32v mask) { return _mm_movemask_epi8((__m128i)mask) != 0; }
FASTVI_HD bool any(i64v mask) { return _mm_movemask_epi8((__m128i)mask) != 0; }
#else
template <class I>
FASTVI_HD bool any(I mask) {
  bool found = false;
  for (unsigned i = 0; i < sizeof(I) / sizeof(mask[0]); ++i) found |= mask[i] != 0;
  return found;
}
#endif

// A formula of two vectors, computed in double; of floats half by half.
template <class F>
FASTVI_HD f64v in_double(F formula, f64v a, f64v b) {
  return formula(a, b);
}
template <class F>
FASTVI_HD f32v in_double(F formula, f32v a, f32v b) {
  f32h x[2], y[2];
  __builtin_memcpy(x, &a, sizeof(a));
  __builtin_memcpy(y, &b, sizeof(b));
  FASTVI_UNROLL
  for (int i = 0; i < 2; ++i) {
    x[i] = __builtin_convertvector(
        formula(__builtin_convertvector(x[i], f64v), __builtin_convertvector(y[i], f64v)), f32h);
  }
  f32v result;
  __builtin_memcpy(&result, x, sizeof(result));
  return result;
}

#if defined(__AVX512F__)
// scale_by_power takes any exponent and keeps NaN.
#define FASTVI_SCALEF 1
FASTVI_HD f32v fma(f32v a, f32v b, f32v c) {
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
FASTVI_HD f64v fma(f64v a, f64v b, f64v c) {
  return (f64v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
FASTVI_HD f32v sqrt(f32v x) { return (f32v)_mm512_sqrt_ps((__m512)x); }
FASTVI_HD f64v sqrt(f64v x) { return (f64v)_mm512_sqrt_pd((__m512d)x); }
FASTVI_HD f32v abs(f32v x) { return (f32v)_mm512_abs_ps((__m512)x); }
FASTVI_HD f32v scale_by_power(f32v p, f32v n, i32v) {
  return (f32v)_mm512_scalef_ps((__m512)p, (__m512)n);
}
FASTVI_HD f64v scale_by_power(f64v p, f64v n, i64v) {
  return (f64v)_mm512_scalef_pd((__m512d)p, (__m512d)n);
}
// b > a ? b : a, which is what max_number promises.
FASTVI_HD f32v max_number(f32v a, f32v b) { return (f32v)_mm512_max_ps((__m512)b, (__m512)a); }
FASTVI_HD f64v max_number(f64v a, f64v b) { return (f64v)_mm512_max_pd((__m512d)b, (__m512d)a); }
// Products of the low 32 bits of each 64-bit lane.
FASTVI_HD u64v mul_low32(u64v a, u64v b) { return (u64v)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
FASTVI_HD u64v xor3(u64v a, u64v b, u64v c) {
  return (u64v)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
}
#elif defined(__AVX2__)
FASTVI_HD f32v fma(f32v a, f32v b, f32v c) {
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
FASTVI_HD f64v fma(f64v a, f64v b, f64v c) {
  return (f64v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
FASTVI_HD f32v sqrt(f32v x) { return (f32v)_mm256_sqrt_ps((__m256)x); }
FASTVI_HD f64v sqrt(f64v x) { return (f64v)_mm256_sqrt_pd((__m256d)x); }
FASTVI_HD f32v max_number(f32v a, f32v b) { return (f32v)_mm256_max_ps((__m256)b, (__m256)a); }
FASTVI_HD f64v max_number(f64v a, f64v b) { return (f64v)_mm256_max_pd((__m256d)b, (__m256d)a); }
FASTVI_HD u64v mul_low32(u64v a, u64v b) { return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
FASTVI_HD u64v xor3(u64v a, u64v b, u64v c) { return a ^ b ^ c; }
#else
#if defined(__SSE2__)
FASTVI_HD u64v mul_low32(u64v a, u64v b) { return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)b); }
FASTVI_HD f32v sqrt(f32v x) { return (f32v)_mm_sqrt_ps((__m128)x); }
FASTVI_HD f64v sqrt(f64v x) { return (f64v)_mm_sqrt_pd((__m128d)x); }
#define FASTVI_NO_FMA 1
// A machine without fused multiply-add still owes its bits. The product of two floats is exact in
// double; the sum is rounded to odd there, so that the last rounding, to float, is the only one.
FASTVI_HD __m128d fma_round_to_odd(__m128d a, __m128d b, __m128d c) {
  const __m128d p = _mm_mul_pd(a, b);
  const __m128d s = _mm_add_pd(p, c);
  const __m128d bb = _mm_sub_pd(s, p);
  const __m128d error = _mm_add_pd(_mm_sub_pd(p, _mm_sub_pd(s, bb)), _mm_sub_pd(c, bb));
  // Where the sum is inexact and even: one step towards the error, which makes it odd.
  const i64v bits = (i64v)s;
  const i64v inexact = (f64v)error != (f64v){0.0, 0.0};
  const i64v away = ((f64v)error > (f64v){0.0, 0.0}) == ((f64v)s > (f64v){0.0, 0.0});
  const i64v odd = bits + ((away & 2) - 1);
  return (__m128d)((inexact & ((bits & 1) == 0)) ? odd : bits);
}
FASTVI_HD f32v fma(f32v a, f32v b, f32v c) {
  const __m128 x = (__m128)a, y = (__m128)b, z = (__m128)c;
  const __m128d low = fma_round_to_odd(_mm_cvtps_pd(x), _mm_cvtps_pd(y), _mm_cvtps_pd(z));
  const __m128d high =
      fma_round_to_odd(_mm_cvtps_pd(_mm_movehl_ps(x, x)), _mm_cvtps_pd(_mm_movehl_ps(y, y)),
                       _mm_cvtps_pd(_mm_movehl_ps(z, z)));
  return (f32v)_mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}
// float64 noise may differ by ulps between machines, so two roundings do here.
FASTVI_HD f64v fma(f64v a, f64v b, f64v c) { return a * b + c; }
#else  // any other machine: lane by lane, which a compiler turns into its own vector instructions
template <class V>
FASTVI_HD V fma_lanes(V a, V b, V c) {
  V r;
  for (int i = 0; i < Traits<V>::lanes; ++i) r[i] = fma(a[i], b[i], c[i]);
  return r;
}
template <class V>
FASTVI_HD V sqrt_lanes(V x) {
  V r;
  for (int i = 0; i < Traits<V>::lanes; ++i) r[i] = sqrt(x[i]);
  return r;
}
FASTVI_HD f32v fma(f32v a, f32v b, f32v c) { return fma_lanes(a, b, c); }
FASTVI_HD f64v fma(f64v a, f64v b, f64v c) { return fma_lanes(a, b, c); }
FASTVI_HD f32v sqrt(f32v x) { return sqrt_lanes(x); }
FASTVI_HD f64v sqrt(f64v x) { return sqrt_lanes(x); }
FASTVI_HD u64v mul_low32(u64v a, u64v b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#endif
FASTVI_HD u64v xor3(u64v a, u64v b, u64v c) { return a ^ b ^ c; }
#endif

#if defined(__AVX512F__)
FASTVI_HD f32v nearest_float(u32v word) { return (f32v)_mm512_cvtepu32_ps((__m512i)word); }
#else
// Both halves are exact, and the sum is rounded once.
FASTVI_HD f32v nearest_float(u32v word) {
  return fma(to_float((i32v)(word >> 16)), f32v{} + 65536.0f, to_float((i32v)(word & 0xffffu)));
}
#endif

#if !defined(__AVX512F__)
FASTVI_HD f32v abs(f32v x) { return (f32v)((i32v)x & 0x7fffffff); }
FASTVI_HD f32v scale_by_power(f32v p, f32v, i32v n) { return (f32v)((u32v)p + ((u32v)n << 23)); }
FASTVI_HD f64v scale_by_power(f64v p, f64v, i64v n) { return (f64v)((u64v)p + ((u64v)n << 52)); }
#endif

// Within every quarter (16 bytes) of two vectors, their low or high elements by turns.
template <class V>
FASTVI_HD V interleave_quarters(V a, V b, int offset) {
  constexpr int lanes = Traits<V>::lanes, quarter = 16 / sizeof(scalar_t<V>);
  int_t<V> index;
  FASTVI_UNROLL
  for (int i = 0; i < lanes; ++i) {
    index[i] = i / quarter * quarter + i % quarter / 2 + offset * quarter / 2 + (i % 2) * lanes;
  }
  return __builtin_shuffle(a, b, index);
}
#if defined(__AVX512F__)
FASTVI_HD f32v interleave_low(f32v a, f32v b) {
  return (f32v)_mm512_unpacklo_ps((__m512)a, (__m512)b);
}
FASTVI_HD f32v interleave_high(f32v a, f32v b) {
  return (f32v)_mm512_unpackhi_ps((__m512)a, (__m512)b);
}
FASTVI_HD f64v interleave_low(f64v a, f64v b) {
  return (f64v)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
}
FASTVI_HD f64v interleave_high(f64v a, f64v b) {
  return (f64v)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
}
#elif defined(__AVX2__)
FASTVI_HD f32v interleave_low(f32v a, f32v b) {
  return (f32v)_mm256_unpacklo_ps((__m256)a, (__m256)b);
}
FASTVI_HD f32v interleave_high(f32v a, f32v b) {
  return (f32v)_mm256_unpackhi_ps((__m256)a, (__m256)b);
}
FASTVI_HD f64v interleave_low(f64v a, f64v b) {
  return (f64v)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
}
FASTVI_HD f64v interleave_high(f64v a, f64v b) {
  return (f64v)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
}
#else
template <class V>
FASTVI_HD V interleave_low(V a, V b) {
  return interleave_quarters(a, b, 0);
}
template <class V>
FASTVI_HD V interleave_high(V a, V b) {
  return interleave_quarters(a, b, 1);
}
#endif

// Loads and stores. `n` lanes from p; the lanes beyond them read as `fill` and are not written.
template <class V, class T>
FASTVI_HD V load(const T* p) {
  if constexpr (sizeof(T) == sizeof(scalar_t<V>)) {
    V v;
    __builtin_memcpy(&v, p, sizeof(V));
    return v;
  } else {
    u16v half;
    __builtin_memcpy(&half, p, sizeof(half));
    if constexpr (__is_same(T, bf16)) {
      return (V)(__builtin_convertvector(half, u32v) << 16);
    } else {
#if defined(__AVX512F__)
      return (V)_mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
      return (V)_mm256_cvtph_ps((__m128i)half);
#else
      V v;
      for (int i = 0; i < Traits<V>::lanes; ++i) v[i] = to_acc(f16{half[i]});
      return v;
#endif
    }
  }
}

template <class V, class T>
FASTVI_HD void store(T* p, V v) {
  if constexpr (sizeof(T) == sizeof(scalar_t<V>)) {
    __builtin_memcpy(p, &v, sizeof(V));
  } else if constexpr (__is_same(T, bf16)) {
    const u32v u = (u32v)v;
    const u32v rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const u16v half =
        __builtin_convertvector((u32v)select<V>(v == v, (V)rounded, (V)(u32v{} + 0x7fc0u)), u16v);
    __builtin_memcpy(p, &half, sizeof(half));
  } else {
#if defined(__AVX512F__)
    const __m256i half = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(p, &half, sizeof(half));
#elif defined(__F16C__)
    const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(p, &half, sizeof(half));
#else
    for (int i = 0; i < Traits<V>::lanes; ++i) p[i] = from_acc<T>(v[i]);
#endif
  }
}

template <class V, class T>
FASTVI_HD V load_partial(const T* p, int n, scalar_t<V> fill = 0) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    return (V)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << n) - 1), p);
  } else if constexpr (__is_same(T, double)) {
    return (V)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << n) - 1), p);
  }
#endif
  scalar_t<V> lane[Traits<V>::lanes];
  store(lane, broadcast<V>(fill));
  for (int i = 0; i < n; ++i) lane[i] = to_acc(p[i]);
  return load<V>(lane);
}

template <class V, class T>
FASTVI_HD void store_partial(T* p, V v, int n) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
    return;
  } else if constexpr (__is_same(T, double)) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
    return;
  }
#endif
  scalar_t<V> lane[Traits<V>::lanes];
  store(lane, v);
  for (int i = 0; i < n; ++i) p[i] = from_acc<T>(lane[i]);
}

// The sum of the lanes, by halves: one fixed order for each width.
#if defined(__AVX512F__)
FASTVI_HD float sum_lanes(f32v v) {
  const __m256 a =
      _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
FASTVI_HD double sum_lanes(f64v v) {
  const __m256d a =
      _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v), _mm512_extractf64x4_pd((__m512d)v, 1));
  const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
#else
template <class V>
FASTVI_HD scalar_t<V> sum_lanes(V v) {
  scalar_t<V> lane[Traits<V>::lanes];
  __builtin_memcpy(lane, &v, sizeof(V));
  FASTVI_UNROLL
  for (int half = Traits<V>::lanes / 2; half > 0; half /= 2) {
    FASTVI_UNROLL
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}
#endif

// The lanes below n, the others replaced by `fill`.
template <class V>
FASTVI_HD V keep_first(V v, int n, scalar_t<V> fill = 0) {
  int_t<V> index;
  FASTVI_UNROLL
  for (int i = 0; i < Traits<V>::lanes; ++i) index[i] = i;
  return select<V>(index < (int_t<V>{} + n), v, broadcast<V>(fill));
}

FASTVI_ISA_END
}  // namespace fastvi
