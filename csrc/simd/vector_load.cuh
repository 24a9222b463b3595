// Packs: 16 bytes of elements, the most that one instruction moves. A thread works on whole packs,
// whatever the alignment; `bytes` says only how many instructions a pack takes to move, so results
// do not depend on where a tensor happens to lie.
#pragma once

#include <initializer_list>

#include "engines/launch.cuh"
#include "simd/elements.h"

// For loops whose copies would only make the code longer.
#if defined(__CUDACC__)
#define FASTVI_ONE_BY_ONE _Pragma("unroll 1")
#else
#define FASTVI_ONE_BY_ONE _Pragma("GCC unroll 1")
#endif

namespace fastvi {

template <class T>
inline constexpr int kPack = 16 / sizeof(T);

// A pack of numbers in the accumulation type, for formulas that are written for one number.
template <class S, int n>
struct Pack {
  S x[n];
  __device__ __forceinline__ S& operator[](int i) { return x[i]; }
  __device__ __forceinline__ S operator[](int i) const { return x[i]; }
  __device__ __forceinline__ Pack operator+(const Pack& other) const {
    Pack sum;
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) sum.x[i] = x[i] + other.x[i];
    return sum;
  }
  __device__ __forceinline__ Pack operator-(const Pack& other) const {
    Pack difference;
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) difference.x[i] = x[i] - other.x[i];
    return difference;
  }
};

// The widest access that all of these byte addresses and distances allow: 16, 8, or 1 for "by the
// element".
inline int access_bytes(std::initializer_list<uint64_t> addresses) {
  uint64_t low_bits = 0;
  for (const uint64_t address : addresses) low_bits |= address;
  return low_bits % 16 == 0 ? 16 : low_bits % 8 == 0 ? 8 : 1;
}
FASTVI_HD uint64_t address_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

namespace detail {

template <int bytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};

// One instruction, said so: of an assignment the compiler may make one for each member.
__device__ __forceinline__ void store_word(uint4* to, uint4 word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}
__device__ __forceinline__ void store_word(uint2* to, uint2 word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v2.u32 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y)
               : "memory");
#else
  *to = word;
#endif
}

__device__ __forceinline__ void store_word(unsigned* to, unsigned word) { *to = word; }

// Two elements in a word, which the device rounds at once.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if constexpr (__is_same(T, bf16)) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return from_acc<T>(low).bits | static_cast<uint32_t>(from_acc<T>(high).bits) << 16;
#endif
}

}  // namespace detail

// A pack as it lies in memory, which may wait in registers for its turn; or one element.
template <class T, bool vector>
struct RawPack {
  static constexpr int words = 16 / 4, n = kPack<T>;
  uint32_t word[words];

  __device__ __forceinline__ void load(const T* p) {
    const uint4 all = *reinterpret_cast<const uint4*>(p);
    __builtin_memcpy(word, &all, sizeof(word));
  }
  __device__ __forceinline__ void fill(T x) {
    T element[n];
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) element[i] = x;
    __builtin_memcpy(word, element, sizeof(word));
  }
  __device__ __forceinline__ void to(acc_t<T> (&x)[n]) const {
    if constexpr (__is_same(T, bf16)) {
      FASTVI_UNROLL
      for (int i = 0; i < n; ++i) {
        x[i] = bit_cast<float>(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
      }
    } else {
      T element[n];
      __builtin_memcpy(element, word, sizeof(element));
      FASTVI_UNROLL
      for (int i = 0; i < n; ++i) x[i] = to_acc(element[i]);
    }
  }
};
template <class T>
struct RawPack<T, false> {
  T element;

  __device__ __forceinline__ void load(const T* p) { element = *p; }
  __device__ __forceinline__ void fill(T x) { element = x; }
  __device__ __forceinline__ void to(acc_t<T> (&x)[1]) const { x[0] = to_acc(element); }
};

// n elements from p, of which p is aligned to `bytes`.
template <int bytes, class T, int n>
__device__ __forceinline__ void load_pack(const T* p, acc_t<T> (&x)[n]) {
  if constexpr (bytes <= static_cast<int>(sizeof(T))) {
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) x[i] = to_acc(p[i]);
  } else {
    using Word = typename detail::Word<bytes>::type;
    constexpr int words = n * static_cast<int>(sizeof(T)) / bytes;
    Word word[words];
    FASTVI_UNROLL
    for (int i = 0; i < words; ++i) word[i] = reinterpret_cast<const Word*>(p)[i];
    T element[n];
    __builtin_memcpy(element, word, sizeof(element));
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) x[i] = to_acc(element[i]);
  }
}

template <int bytes, class T, int n>
__device__ __forceinline__ void store_pack(T* p, const acc_t<T> (&x)[n]) {
  if constexpr (bytes <= static_cast<int>(sizeof(T))) {
    FASTVI_UNROLL
    for (int i = 0; i < n; ++i) p[i] = from_acc<T>(x[i]);
  } else {
    using Word = typename detail::Word<bytes>::type;
    constexpr int words = n * static_cast<int>(sizeof(T)) / bytes;
    Word word[words];
    if constexpr (sizeof(T) == 2) {
      uint32_t pair[n / 2];
      FASTVI_UNROLL
      for (int i = 0; i < n / 2; ++i) pair[i] = detail::pair_of<T>(x[2 * i], x[2 * i + 1]);
      __builtin_memcpy(word, pair, sizeof(pair));
    } else {
      T element[n];
      FASTVI_UNROLL
      for (int i = 0; i < n; ++i) element[i] = from_acc<T>(x[i]);
      __builtin_memcpy(word, element, sizeof(element));
    }
    FASTVI_UNROLL
    for (int i = 0; i < words; ++i) detail::store_word(reinterpret_cast<Word*>(p) + i, word[i]);
  }
}

// The first `count` of n elements; the others read as `fill` and are not written.
template <class T, int n>
__device__ __forceinline__ void load_partial(const T* p, int count, acc_t<T> fill,
                                             acc_t<T> (&x)[n]) {
  FASTVI_UNROLL
  for (int i = 0; i < n; ++i) x[i] = i < count ? to_acc(p[i]) : fill;
}
template <class T, int n>
__device__ __forceinline__ void store_partial(T* p, int count, const acc_t<T> (&x)[n]) {
  FASTVI_UNROLL
  for (int i = 0; i < n; ++i) {
    if (i < count) p[i] = from_acc<T>(x[i]);
  }
}

}  // namespace fastvi

// Calls `...` with kBytes bound to an access width, a constant.
#define FASTVI_SWITCH_ACCESS(bytes, kBytes, ...) \
  switch (bytes) {                               \
    case 16: {                                   \
      constexpr int kBytes = 16;                 \
      __VA_ARGS__;                               \
      break;                                     \
    }                                            \
    case 8: {                                    \
      constexpr int kBytes = 8;                  \
      __VA_ARGS__;                               \
      break;                                     \
    }                                            \
    default: {                                   \
      constexpr int kBytes = 1;                  \
      __VA_ARGS__;                               \
      break;                                     \
    }                                            \
  }
