#include "isa.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

extern "C" const lowrank::IsaTable lowrankIsaGeneric;
#if defined(__x86_64__)
extern "C" const lowrank::IsaTable lowrankIsaAvx2;
extern "C" const lowrank::IsaTable lowrankIsaAvx512;
extern "C" const lowrank::GemmKernels lowrankBrainProduct;
#elif defined(__aarch64__)
extern "C" const lowrank::IsaTable lowrankIsaNeon;
extern "C" const lowrank::GemmKernels* const lowrankNeonBrainProduct;
#endif

namespace lowrank {

#if defined(__x86_64__)
namespace {

// AVX-512 with products of bf16 pairs beside the exact ones.
const IsaTable* avx512bf16() {
  static const IsaTable table = [] {
    IsaTable t = lowrankIsaAvx512;
    t.name = "avx512bf16";
    t.brainProduct = &lowrankBrainProduct;
    return t;
  }();
  return &table;
}

}  // namespace
#elif defined(__aarch64__)
namespace {

// Whether the processor multiplies pairs of bf16 (FEAT_BF16).
bool hasBrain() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP2) & (1ul << 14)) != 0;  // HWCAP2_BF16
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

// NEON with products of bf16 pairs beside the exact ones.
const IsaTable* neonbf16() {
  static const IsaTable table = [] {
    IsaTable t = lowrankIsaNeon;
    t.name = "neonbf16";
    t.brainProduct = lowrankNeonBrainProduct;
    return t;
  }();
  return &table;
}

}  // namespace
#endif

int supportedIsas(const IsaTable** tables, int capacity) {
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && n < capacity) tables[n++] = avx512bf16();
  if (avx512 && n < capacity) tables[n++] = &lowrankIsaAvx512;
  if (avx2 && n < capacity) tables[n++] = &lowrankIsaAvx2;
#elif defined(__aarch64__)
  if (lowrankNeonBrainProduct && hasBrain() && n < capacity) tables[n++] = neonbf16();
  if (n < capacity) tables[n++] = &lowrankIsaNeon;
#endif
  if (n < capacity) tables[n++] = &lowrankIsaGeneric;
  return n;
}

}  // namespace lowrank
