// Which of the CPU builds of a kernel runs: the widest that the machine has, or the one that the
// environment variable FASTVI_CPU_ISA names (baseline, avx2, avx512).
#pragma once

#if defined(__x86_64__)
#define FASTVI_X86 1
#endif

namespace fastvi {

enum class CpuIsa { baseline, avx2, avx512 };

// Chosen once, at the first call. Throws std::invalid_argument where the variable names none, or
// one that this machine lacks.
CpuIsa cpu_isa();
const char* cpu_isa_name(CpuIsa isa);

}  // namespace fastvi
