#include "simd/cpu_isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastvi {
namespace {

constexpr CpuIsa kAll[] = {CpuIsa::baseline, CpuIsa::avx2, CpuIsa::avx512};

bool machine_has(CpuIsa isa) {
#ifdef FASTVI_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  return isa == CpuIsa::baseline || (isa == CpuIsa::avx2 && avx2) ||
         (isa == CpuIsa::avx512 && avx512);
#else
  return isa == CpuIsa::baseline;
#endif
}

CpuIsa choose() {
  if (const char* asked = std::getenv("FASTVI_CPU_ISA"); asked != nullptr && *asked != '\0') {
    for (const CpuIsa isa : kAll) {
      if (std::string(asked) != cpu_isa_name(isa)) continue;
      if (machine_has(isa)) return isa;
      throw std::invalid_argument(std::string("FASTVI_CPU_ISA: this machine does not have ") +
                                  asked);
    }
    throw std::invalid_argument(
        std::string("FASTVI_CPU_ISA: expected baseline, avx2 or avx512, got ") + asked);
  }
  CpuIsa widest = CpuIsa::baseline;
  for (const CpuIsa isa : kAll) {
    if (machine_has(isa)) widest = isa;
  }
  return widest;
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa chosen = choose();
  return chosen;
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::avx512:
      return "avx512";
    case CpuIsa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fastvi
