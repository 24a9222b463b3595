// What every kernel file shares before any maths: host+device markers, the namespace of an
// instruction set, and the declaration of a kernel. No torch here.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTVI_HD __host__ __device__ __forceinline__
#else
#define FASTVI_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
#define FASTVI_UNROLL _Pragma("unroll")
#else
#define FASTVI_UNROLL _Pragma("GCC unroll 16")
#endif

// A function that is large, or rarely called, and is not copied into those that call it.
#define FASTVI_OUTLINE __attribute__((noinline))

// The CPU sources are compiled once per instruction set with FASTVI_ISA = baseline | avx2 | avx512.
// Everything inline lives in a namespace of that name: two copies of one inline function built with
// different flags must never be merged by the linker, or an old machine would run AVX-512 code.
#ifndef FASTVI_ISA
#define FASTVI_ISA baseline
#endif
#define FASTVI_CONCAT_(a, b) a##b
#define FASTVI_CONCAT(a, b) FASTVI_CONCAT_(a, b)
#define FASTVI_ISA_BEGIN inline namespace FASTVI_CONCAT(isa_, FASTVI_ISA) {
#define FASTVI_ISA_END }

// A kernel has one entry per backend. The CPU entries work on the range [begin, end) of tasks; the
// CUDA entry launches the whole kernel on a stream and returns nullptr or an error message. It is
// weak: a build without CUDA simply does not define it.
#define FASTVI_DECLARE_KERNEL(name, ParamsType)                                 \
  struct name {                                                                 \
    using Params = ParamsType;                                                  \
    static void baseline(const Params&, int64_t begin, int64_t end);            \
    static void avx2(const Params&, int64_t begin, int64_t end);                \
    static void avx512(const Params&, int64_t begin, int64_t end);              \
    __attribute__((weak)) static const char* cuda(const Params&, void* stream); \
  }

namespace fastvi {

// Element types of tensors. The order is that of the table in torch/checks.h.
enum class Dtype : int32_t { f32, f64, bf16, f16 };

FASTVI_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTVI_HD int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
FASTVI_HD int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace fastvi
