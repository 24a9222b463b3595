// What the translated kernels see: a CUDA thread, and the arithmetic of PTX that C++ has no sign
// for. Kept small, because it is read once for each op.
#pragma once

#include <cstdint>

namespace ptx {

enum class Access { read, strong_read, write, atomic };
// What the lanes of a warp do together.
enum class Meeting { sync, bfly, up, down, idx, all_of, any_of, uni_of, ballot_of };
enum class Wait { nothing, lanes, barrier, left };

struct Thread {
  uint32_t thread, block, threads, blocks;
  int place = 0;  // where its function goes on
  void* state = nullptr;
  char* local_memory = nullptr;
  uint32_t* visits = nullptr;  // of each stretch of instructions without a branch

  Wait wait = Wait::nothing;
  Meeting meeting = Meeting::sync;
  uint32_t given = 0, argument = 0, clamp = 0, mask = 0;  // what it brings to a meeting
  uint32_t result = 0;                                    // and what it takes away
  bool flag = false;
  bool early = false;          // whether the launch before it may still run
  uint32_t warp_meetings = 0;  // how often its warp has met to order its memory

  // Each access is checked, and noted, and comes back as a pointer of the host.
  char* global(uint64_t address, uint32_t size, Access how);
  char* shared(uint64_t address, uint32_t size, Access how);
  char* local(uint64_t address, uint32_t size, Access how);
  char* param(uint64_t address, uint32_t size, Access how);
  char* generic(uint64_t address, uint32_t size, Access how);
  char* constant(uint64_t address, uint32_t size, Access how) { return global(address, size, how); }
  uint64_t parameter_address(uint64_t offset) const;
  uint64_t dynamic_shared() const;
  uint64_t generic_shared(uint64_t offset) const;
  uint64_t generic_local(uint64_t offset) const;
  uint64_t to_generic_shared(uint64_t address) const;
  uint64_t to_generic_local(uint64_t address) const;

  void fence();
  void together(Meeting what, uint32_t value, uint32_t with, uint32_t within, uint32_t lanes);
  void at_barrier() { wait = Wait::barrier; }
  void wait_for_launch_before() { early = false; }
  void leave() {
    if (early) fail("left without a wait for the launch before");
    wait = Wait::left;
  }
  static constexpr const char* trapped = "reached a trap";
  static constexpr const char* no_target = "an indirect branch to nowhere";
  [[noreturn]] void fail(const char* what, uint64_t number = 0) const;
};

// Kernels and tables make themselves known when the program starts.
struct Kernel {
  const char* name;
  void (*run)(Thread&);
  uint64_t state_bytes, parameter_bytes, shared_bytes, local_bytes;
  uint32_t most_threads;
  const uint32_t* lengths;
  uint32_t stretches;
  Kernel(const char* name, void (*run)(Thread&), uint64_t state_bytes, uint64_t parameter_bytes,
         uint64_t shared_bytes, uint64_t local_bytes, uint32_t most_threads,
         const uint32_t* lengths, uint32_t stretches);
};
struct Table {
  Table(const void* data, uint64_t size);
};

inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
inline uint64_t bits_of(double x) { return __builtin_bit_cast(uint64_t, x); }
inline float as_f32(uint32_t x) { return __builtin_bit_cast(float, x); }
inline double as_f64(uint64_t x) { return __builtin_bit_cast(double, x); }
inline float abs_f32(float x) { return __builtin_fabsf(x); }
inline double abs_f64(double x) { return __builtin_fabs(x); }
inline uint32_t pair(uint32_t low, uint32_t high) { return high << 16 | low; }
inline uint32_t at_most_32(uint32_t n) { return n < 32 ? n : 32; }

float fma_f32(float, float, float);
double fma_f64(double, double, double);
float sqrt_f32(float);
double sqrt_f64(double);
float saturated(float), saturated(double);
float flushed(float);

#define PTX_ROUNDED(name, ...) \
  float name##_f32_rz(__VA_ARGS__), name##_f32_rm(__VA_ARGS__), name##_f32_rp(__VA_ARGS__);
PTX_ROUNDED(add, float, float)
PTX_ROUNDED(sub, float, float)
PTX_ROUNDED(mul, float, float)
PTX_ROUNDED(fma, float, float, float)
#undef PTX_ROUNDED

// Approximations: the card's differ in their last bits.
float ex2_approx_f32(float), lg2_approx_f32(float), sin_approx_f32(float), cos_approx_f32(float);
float tanh_approx_f32(float), rsqrt_approx_f32(float), rcp_approx_f32(float),
    sqrt_approx_f32(float);
float div_approx_f32(float, float);
double rcp_approx_f64(double), rsqrt_approx_f64(double);

float max_f32(float, float), min_f32(float, float), max_nan_f32(float, float),
    min_nan_f32(float, float);
double max_f64(double, double), min_f64(double, double);

#define PTX_HALVES(kind, word)                                                       \
  word add_##kind(word, word), sub_##kind(word, word), mul_##kind(word, word);       \
  word fma_##kind(word, word, word), min_##kind(word, word), max_##kind(word, word); \
  word min_nan_##kind(word, word), max_nan_##kind(word, word), neg_##kind(word), abs_##kind(word);
PTX_HALVES(f16, uint16_t)
PTX_HALVES(bf16, uint16_t)
PTX_HALVES(f16x2, uint32_t)
PTX_HALVES(bf16x2, uint32_t)
#undef PTX_HALVES
float f16_to_f32(uint16_t), bf16_to_f32(uint16_t);
uint16_t f32_to_f16(float), f32_to_bf16(float);

// Rounded to a whole number: to even, to zero, down, up.
#define PTX_WHOLE(kind, real)                                                        \
  real whole_##kind##_rni(real), whole_##kind##_rzi(real), whole_##kind##_rmi(real), \
      whole_##kind##_rpi(real);
PTX_WHOLE(f32, float)
PTX_WHOLE(f64, double)
#undef PTX_WHOLE
#define PTX_TO_INTEGER(kind, real) \
  int32_t kind##_to_s32(real);     \
  int64_t kind##_to_s64(real);     \
  uint32_t kind##_to_u32(real);    \
  uint64_t kind##_to_u64(real);
PTX_TO_INTEGER(f32, float)
PTX_TO_INTEGER(f64, double)
#undef PTX_TO_INTEGER

#define PTX_INTEGERS(kind, word) \
  word quotient_##kind(word, word), remainder_##kind(word, word), high_##kind(word, word);
PTX_INTEGERS(u16, uint16_t)
PTX_INTEGERS(s16, int16_t)
PTX_INTEGERS(u32, uint32_t)
PTX_INTEGERS(s32, int32_t)
PTX_INTEGERS(u64, uint64_t)
PTX_INTEGERS(s64, int64_t)
#undef PTX_INTEGERS
uint32_t bfi_b32(uint32_t, uint32_t, uint32_t, uint32_t), bfe_u32(uint32_t, uint32_t, uint32_t);
uint64_t bfi_b64(uint64_t, uint64_t, uint32_t, uint32_t), bfe_u64(uint64_t, uint32_t, uint32_t);
int32_t bfe_s32(int32_t, uint32_t, uint32_t);
uint32_t prmt_b32(uint32_t, uint32_t, uint32_t), lop3_b32(uint32_t, uint32_t, uint32_t, uint32_t);
inline uint32_t popc_b32(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t popc_b64(uint64_t x) { return __builtin_popcountll(x); }
inline uint32_t clz_b32(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
inline uint32_t clz_b64(uint64_t x) { return x == 0 ? 64 : __builtin_clzll(x); }
uint32_t brev_b32(uint32_t);

// What an atomic instruction writes, from what is there.
template <class T>
T add_at(T old, T x) {
  return old + x;
}
template <class T>
T min_at(T old, T x) {
  return x < old ? x : old;
}
template <class T>
T max_at(T old, T x) {
  return x > old ? x : old;
}
template <class T>
T inc_at(T old, T x) {
  return old >= x ? 0 : old + 1;
}
template <class T>
T dec_at(T old, T x) {
  return old == 0 || old > x ? x : old - 1;
}
template <class T>
T and_at(T old, T x) {
  return old & x;
}
template <class T>
T or_at(T old, T x) {
  return old | x;
}
template <class T>
T xor_at(T old, T x) {
  return old ^ x;
}
template <class T>
T exch_at(T, T x) {
  return x;
}
template <class T>
T cas_at(T old, T expected, T x) {
  return old == expected ? x : old;
}

}  // namespace ptx
