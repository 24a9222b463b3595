// What the driver's cases share: arrays of exactly the size a kernel may touch, and comparison.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "maths/math.h"
#include "simd/cpu_isa.h"
#ifndef FASTVI_DRIVE_CPU
#include "cuda_runtime.h"
#endif

namespace driver {

using fastvi::Dtype;

inline size_t size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
inline Dtype accumulate_type(Dtype dtype) { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }
inline const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return "float32";
    case Dtype::f64:
      return "float64";
    case Dtype::bf16:
      return "bfloat16";
    default:
      return "float16";
  }
}

inline double uniform() {
  static uint64_t state = 1;
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(state >> 11) * 0x1.0p-53;
}

// AddressSanitizer does not see the masked loads and stores of AVX-512. Then a page that no one may
// touch lies behind an array.
inline bool guarded = false;

struct Release {
  void* mapped = nullptr;
  size_t size = 0;
  void operator()(char* bytes) const {
    if (mapped == nullptr) {
      delete[] bytes;
    } else {
      munmap(mapped, size);
    }
  }
};

inline std::unique_ptr<char[], Release> allocate(size_t size) {
  if (!guarded) return {new char[size], Release{}};
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)),
               whole = (size + page - 1) / page * page;
  void* mapped =
      mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* const end = static_cast<char*>(mapped) + whole;
  if (mapped == MAP_FAILED || mprotect(end, page, PROT_NONE) != 0) std::abort();
  return {end - size, Release{mapped, whole + page}};
}

// `size` elements of memory, with nothing behind them. `skip` elements before them break the
// alignment that vector loads need.
class Array {
 public:
  Array(Dtype dtype, int64_t size, int64_t skip = 0)
      : dtype_(dtype),
        size_(size),
        skip_(skip),
        bytes_(allocate(static_cast<size_t>(size + skip) * size_of(dtype))) {
    std::memset(data(), 0x7f, static_cast<size_t>(size) * size_of(dtype));
  }
  static Array random(Dtype dtype, int64_t size, double low, double high, int64_t skip = 0) {
    Array a(dtype, size, skip);
    for (int64_t i = 0; i < size; ++i) a.set(i, low + (high - low) * uniform());
    return a;
  }

  void* data() const { return bytes_.get() + static_cast<size_t>(skip_) * size_of(dtype_); }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * size_of(dtype_); }
  Dtype dtype() const { return dtype_; }

  double get(int64_t i) const {
    FASTVI_SWITCH_DTYPE(dtype_, T, return fastvi::to_acc(static_cast<const T*>(data())[i]))
    return 0;
  }
  void set(int64_t i, double x) {
    FASTVI_SWITCH_DTYPE(dtype_, T, {
      static_cast<T*>(data())[i] = fastvi::from_acc<T>(static_cast<fastvi::acc_t<T>>(x));
    })
  }

 private:
  Dtype dtype_;
  int64_t size_, skip_;
  std::unique_ptr<char[], Release> bytes_;
};

// Numbers of samples, in no order; of exactly that many elements.
inline std::vector<int64_t> some_numbers(int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t& x : numbers) x = static_cast<int64_t>(uniform() * uniform() * 0x1p40);
  return numbers;
}

inline int failures = 0;
inline int comparisons = 0;

inline void fail(const std::string& what) {
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

inline void check_launch(const std::string& what, const char* error) {
  if (error != nullptr) fail(what + ": " + error);
}

// Sums of different order differ by a few roundings; the stored type rounds once more. `dtype` is
// that of the roundings, where it is not the stored one.
inline void compare(const std::string& what, const Array& got, const Array& expected, Dtype dtype) {
  ++comparisons;
  const double tolerance = dtype == Dtype::f64    ? 1e-12
                           : dtype == Dtype::f32  ? 2e-5
                           : dtype == Dtype::bf16 ? 1e-2
                                                  : 2e-3;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double x = got.get(i), y = expected.get(i);
    const bool same = x == y || (std::isnan(x) && std::isnan(y)) ||
                      std::abs(x - y) <= tolerance * (1 + std::abs(y));
    if (same) continue;
    char text[160];
    std::snprintf(text, sizeof(text), " [%lld]: expected %.9g, got %.9g", static_cast<long long>(i),
                  y, x);
    return fail(what + text);
  }
}

inline void compare(const std::string& what, const Array& got, const Array& expected) {
  compare(what, got, expected, got.dtype());
}

inline void compare_bits(const std::string& what, const Array& got, const Array& expected) {
  ++comparisons;
  if (std::memcmp(got.data(), expected.data(), got.bytes()) != 0)
    fail(what + ": expected the same bits");
}

#ifdef FASTVI_DRIVE_CPU
struct Recording {};
inline constexpr bool kDrivesCpu = true;
// What is compared with the baseline: another instruction set, in ranges as threads would take
// them.
template <class Kernel, class Params>
void run(const std::string&, bool other, const Params& params, int64_t tasks) {
  if (!other) return Kernel::baseline(params, 0, tasks);
  auto kernel = Kernel::baseline;
#if defined(__x86_64__)
  if (fastvi::cpu_isa() == fastvi::CpuIsa::avx2) kernel = Kernel::avx2;
  if (fastvi::cpu_isa() == fastvi::CpuIsa::avx512) kernel = Kernel::avx512;
#endif
  for (int64_t begin = 0, end; begin < tasks; begin = end) {
    end = std::min(tasks, begin + 1 + static_cast<int64_t>(uniform() * static_cast<double>(tasks)));
    kernel(params, begin, end);
  }
}
// About the widths of vectors and of their unrolled loops. Too many for the emulation.
inline const std::vector<int64_t> kSizes = {1,  2,  3,  4,  5,  7,  8,  9,   15,
                                            16, 17, 31, 32, 33, 63, 65, 127, 129};
#else
inline constexpr bool kDrivesCpu = false;
// While one lives, streams record a graph.
struct Recording {
  Recording() { cuda_emulation::recording = true; }
  ~Recording() { cuda_emulation::recording = false; }
};
// Runs a kernel's CPU entry for all of its tasks, or its CUDA entry.
template <class Kernel, class Params>
void run(const std::string& what, bool cuda, const Params& params, int64_t tasks) {
  if (cuda) {
    check_launch(what, Kernel::cuda(params, nullptr));
  } else {
    Kernel::baseline(params, 0, tasks);
  }
}
#ifdef FASTVI_DRIVE_PTX
// Single elements, and whole packs of every type.
inline const std::vector<int64_t> kSizes = {7, 24};
#else
inline const std::vector<int64_t> kSizes = {};
#endif
#endif
inline const std::vector<Dtype> kDtypes = {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16};

void iwlb_cases();
void leave_one_out_cases();
void row_sum_cases();
void categorical_cases();
void rsample_cases();
void bernoulli_sample_cases();
void categorical_sample_cases();
void plant_overrun();
void plant_race();
void plant_divergence();

}  // namespace driver
