// The arithmetic of thread.h. Compiled with -frounding-math, for directed roundings are set here.
#include <cfenv>
#include <cmath>
#include <limits>

#include "simd/elements.h"
#include "thread.h"

namespace ptx {
namespace {

template <int mode, class F, class... X>
auto rounded(F f, X... given) {
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile float result = [&](volatile X... x) { return f(static_cast<X>(x)...); }(given...);
  std::fesetround(before);
  return static_cast<float>(result);
}

template <class T>
bool is_nan(T x) {
  return x != x;
}
template <class T>
T larger(T a, T b) {
  if (is_nan(a)) return b;
  if (is_nan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T>
T smaller(T a, T b) {
  return is_nan(a) || is_nan(b) ? larger(a, b) : -larger(-a, -b);
}
const float kNan = as_f32(0x7fffffffu);

template <class To, class From>
To to_integer(From x) {
  if (is_nan(x))
    return std::numeric_limits<To>::digits == 63 ? std::numeric_limits<To>::min() : To(0);
  const long double wide = x;
  if (wide >= static_cast<long double>(std::numeric_limits<To>::max()))
    return std::numeric_limits<To>::max();
  if (wide <= static_cast<long double>(std::numeric_limits<To>::min()))
    return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}

}  // namespace

float fma_f32(float a, float b, float c) { return std::fma(a, b, c); }
double fma_f64(double a, double b, double c) { return std::fma(a, b, c); }
float sqrt_f32(float x) { return std::sqrt(x); }
double sqrt_f64(double x) { return std::sqrt(x); }
float saturated(float x) { return is_nan(x) || x < 0 ? 0.0f : x > 1 ? 1.0f : x; }
float saturated(double x) { return saturated(static_cast<float>(x)); }
float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

#define PTX_ROUNDED(name, parameters, arguments, formula)                     \
  float name##_f32_rz parameters { return rounded<FE_TOWARDZERO> arguments; } \
  float name##_f32_rm parameters { return rounded<FE_DOWNWARD> arguments; }   \
  float name##_f32_rp parameters { return rounded<FE_UPWARD> arguments; }
PTX_ROUNDED(add, (float a, float b), ([](float x, float y) { return x + y; }, a, b), )
PTX_ROUNDED(sub, (float a, float b), ([](float x, float y) { return x - y; }, a, b), )
PTX_ROUNDED(mul, (float a, float b), ([](float x, float y) { return x * y; }, a, b), )
PTX_ROUNDED(fma, (float a, float b, float c),
            ([](float x, float y, float z) { return std::fma(x, y, z); }, a, b, c), )

float ex2_approx_f32(float x) { return std::exp2(flushed(x)); }
float lg2_approx_f32(float x) { return std::log2(flushed(x)); }
float sin_approx_f32(float x) { return std::sin(x); }
float cos_approx_f32(float x) { return std::cos(x); }
float tanh_approx_f32(float x) { return std::tanh(x); }
float rsqrt_approx_f32(float x) { return 1 / std::sqrt(flushed(x)); }
float rcp_approx_f32(float x) { return 1 / flushed(x); }
float sqrt_approx_f32(float x) { return std::sqrt(flushed(x)); }
float div_approx_f32(float a, float b) { return a / b; }
double rcp_approx_f64(double x) { return 1 / x; }
double rsqrt_approx_f64(double x) { return 1 / std::sqrt(x); }

float max_f32(float a, float b) { return larger(a, b); }
float min_f32(float a, float b) { return smaller(a, b); }
double max_f64(double a, double b) { return larger(a, b); }
double min_f64(double a, double b) { return smaller(a, b); }
float max_nan_f32(float a, float b) { return is_nan(a) || is_nan(b) ? kNan : larger(a, b); }
float min_nan_f32(float a, float b) { return is_nan(a) || is_nan(b) ? kNan : smaller(a, b); }

float f16_to_f32(uint16_t x) { return fastvi::to_acc(fastvi::f16{x}); }
float bf16_to_f32(uint16_t x) { return fastvi::to_acc(fastvi::bf16{x}); }
uint16_t f32_to_f16(float x) { return fastvi::from_acc<fastvi::f16>(x).bits; }
uint16_t f32_to_bf16(float x) { return fastvi::from_acc<fastvi::bf16>(x).bits; }

// A product of two such numbers is exact in float64, and a sum of it and a third is rounded there
// to odd, so that one rounding is left.
namespace {
double sum_to_odd(double a, double b) {
  const double sum = a + b, part = sum - a;
  const double rest = (a - (sum - part)) + (b - part);
  const uint64_t bits = bits_of(sum);
  if (rest == 0 || (bits & 1) != 0 || is_nan(sum) || std::isinf(sum)) return sum;
  return as_f64((rest > 0) == (sum > 0) ? bits + 1 : bits - 1);
}
float to_float_odd(double x) {
  const float near = static_cast<float>(x);
  if (near == x || is_nan(x) || std::isinf(near) || (bits_of(near) & 1) != 0) return near;
  return as_f32((std::fabs(static_cast<double>(near)) < std::fabs(x)) ? bits_of(near) + 1
                                                                      : bits_of(near) - 1);
}
}  // namespace

#define PTX_HALVES(kind)                                                                          \
  uint16_t add_##kind(uint16_t a, uint16_t b) {                                                   \
    return f32_to_##kind(to_float_odd(sum_to_odd(kind##_to_f32(a), kind##_to_f32(b))));           \
  }                                                                                               \
  uint16_t sub_##kind(uint16_t a, uint16_t b) { return add_##kind(a, b ^ 0x8000); }               \
  uint16_t mul_##kind(uint16_t a, uint16_t b) {                                                   \
    return f32_to_##kind(to_float_odd(static_cast<double>(kind##_to_f32(a)) * kind##_to_f32(b))); \
  }                                                                                               \
  uint16_t fma_##kind(uint16_t a, uint16_t b, uint16_t c) {                                       \
    const double product = static_cast<double>(kind##_to_f32(a)) * kind##_to_f32(b);              \
    return f32_to_##kind(to_float_odd(sum_to_odd(product, kind##_to_f32(c))));                    \
  }                                                                                               \
  uint16_t min_##kind(uint16_t a, uint16_t b) {                                                   \
    return f32_to_##kind(min_f32(kind##_to_f32(a), kind##_to_f32(b)));                            \
  }                                                                                               \
  uint16_t max_##kind(uint16_t a, uint16_t b) {                                                   \
    return f32_to_##kind(max_f32(kind##_to_f32(a), kind##_to_f32(b)));                            \
  }                                                                                               \
  uint16_t min_nan_##kind(uint16_t a, uint16_t b) {                                               \
    return is_nan(kind##_to_f32(a)) || is_nan(kind##_to_f32(b)) ? 0x7fff : min_##kind(a, b);      \
  }                                                                                               \
  uint16_t max_nan_##kind(uint16_t a, uint16_t b) {                                               \
    return is_nan(kind##_to_f32(a)) || is_nan(kind##_to_f32(b)) ? 0x7fff : max_##kind(a, b);      \
  }                                                                                               \
  uint16_t neg_##kind(uint16_t a) { return a ^ 0x8000; }                                          \
  uint16_t abs_##kind(uint16_t a) { return a & 0x7fff; }                                          \
  PTX_PAIR(kind, add)                                                                             \
  PTX_PAIR(kind, sub)                                                                             \
  PTX_PAIR(kind, mul)                                                                             \
  PTX_PAIR(kind, min)                                                                             \
  PTX_PAIR(kind, max)                                                                             \
  PTX_PAIR(kind, min_nan)                                                                         \
  PTX_PAIR(kind, max_nan)                                                                         \
  uint32_t fma_##kind##x2(uint32_t a, uint32_t b, uint32_t c) {                                   \
    return pair(fma_##kind(a, b, c), fma_##kind(a >> 16, b >> 16, c >> 16));                      \
  }                                                                                               \
  uint32_t neg_##kind##x2(uint32_t a) { return a ^ 0x80008000u; }                                 \
  uint32_t abs_##kind##x2(uint32_t a) { return a & 0x7fff7fffu; }
#define PTX_PAIR(kind, name)                                           \
  uint32_t name##_##kind##x2(uint32_t a, uint32_t b) {                 \
    return pair(name##_##kind(a, b), name##_##kind(a >> 16, b >> 16)); \
  }
PTX_HALVES(f16)
PTX_HALVES(bf16)

#define PTX_WHOLE(kind, real)                                        \
  real whole_##kind##_rni(real x) { return std::nearbyint(x); }      \
  real whole_##kind##_rzi(real x) { return std::trunc(x); }          \
  real whole_##kind##_rmi(real x) { return std::floor(x); }          \
  real whole_##kind##_rpi(real x) { return std::ceil(x); }           \
  int32_t kind##_to_s32(real x) { return to_integer<int32_t>(x); }   \
  int64_t kind##_to_s64(real x) { return to_integer<int64_t>(x); }   \
  uint32_t kind##_to_u32(real x) { return to_integer<uint32_t>(x); } \
  uint64_t kind##_to_u64(real x) { return to_integer<uint64_t>(x); }
PTX_WHOLE(f32, float)
PTX_WHOLE(f64, double)

// What a quotient by zero is differs from card to card, so nothing may depend on it.
#define PTX_INTEGERS(kind, word, wide)                                                         \
  word quotient_##kind(word a, word b) {                                                       \
    if (b == 0) return static_cast<word>(-1);                                                  \
    return static_cast<word>(-1) < 0 && b == static_cast<word>(-1)                             \
               ? static_cast<word>(0u - static_cast<uint64_t>(a))                              \
               : static_cast<word>(a / b);                                                     \
  }                                                                                            \
  word remainder_##kind(word a, word b) {                                                      \
    if (b == 0) return a;                                                                      \
    return static_cast<word>(-1) < 0 && b == static_cast<word>(-1) ? static_cast<word>(0)      \
                                                                   : static_cast<word>(a % b); \
  }                                                                                            \
  word high_##kind(word a, word b) {                                                           \
    return static_cast<word>(static_cast<wide>(a) * static_cast<wide>(b) >> 8 * sizeof(word)); \
  }
PTX_INTEGERS(u16, uint16_t, uint32_t)
PTX_INTEGERS(s16, int16_t, int32_t)
PTX_INTEGERS(u32, uint32_t, uint64_t)
PTX_INTEGERS(s32, int32_t, int64_t)
PTX_INTEGERS(u64, uint64_t, unsigned __int128)
PTX_INTEGERS(s64, int64_t, __int128)

namespace {
template <class T>
T ones(uint32_t length) {
  return length >= 8 * sizeof(T) ? static_cast<T>(-1) : static_cast<T>((T(1) << length) - 1);
}
template <class T>
T insert(T from, T to, uint32_t begin, uint32_t length) {
  begin &= 255, length &= 255;
  if (begin >= 8 * sizeof(T)) return to;
  const T mask = static_cast<T>(ones<T>(length) << begin);
  return (to & ~mask) | (from << begin & mask);
}
template <class T>
T extract(T x, uint32_t begin, uint32_t length) {
  begin &= 255, length &= 255;
  return begin >= 8 * sizeof(T) ? 0 : x >> begin & ones<T>(length);
}
}  // namespace
uint32_t bfi_b32(uint32_t a, uint32_t b, uint32_t begin, uint32_t length) {
  return insert(a, b, begin, length);
}
uint64_t bfi_b64(uint64_t a, uint64_t b, uint32_t begin, uint32_t length) {
  return insert(a, b, begin, length);
}
uint32_t bfe_u32(uint32_t x, uint32_t begin, uint32_t length) { return extract(x, begin, length); }
uint64_t bfe_u64(uint64_t x, uint32_t begin, uint32_t length) { return extract(x, begin, length); }
int32_t bfe_s32(int32_t x, uint32_t begin, uint32_t length) {
  begin &= 255, length &= 255;
  if (length == 0) return 0;
  const int64_t wide = static_cast<int64_t>(x) >> (begin < 32 ? begin : 31);
  return length >= 32 ? static_cast<int32_t>(wide)
                      : static_cast<int32_t>(wide << (64 - length) >> (64 - length));
}
uint32_t prmt_b32(uint32_t a, uint32_t b, uint32_t choice) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = choice >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(both >> 8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
uint32_t lop3_b32(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}
uint32_t brev_b32(uint32_t x) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}

}  // namespace ptx
