// Which of x86's instruction sets this CPU has, as it tells itself.
#include <cpuid.h>

#include "x86.h"

namespace fxq {

namespace {

bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// As AVX-512 VNNI, but for attention and weight-only linears.
const Isa& avx512_bf16() {
  static const Isa isa = [] {
    Isa changed = avx512_vnni;
    changed.name = "avx512_bf16";
    changed.attention = attention_avx512_bf16;
    changed.weight_only = weight_only_avx512_bf16;
    return changed;
  }();
  return isa;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// VNNI in AVX's encoding, by CPUID: not every Clang knows its name.
bool has_vex_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}

bool has_avx_vnni() { return has_vex_vnni() || (has_avx2() && has_avx512_vnni()); }

// As AVX2, but for linears. A CPU that has VNNI as part of AVX-512 alone runs the same code in that encoding.
const Isa& avx_vnni() {
  static const Isa isa = [] {
    Isa changed = avx2;
    changed.name = "avx_vnni";
    changed.linear = has_vex_vnni() ? linear_avx_vnni : linear_avx512_vl;
    return changed;
  }();
  return isa;
}

}  // namespace

std::vector<const Isa*> instruction_sets() {
  __builtin_cpu_init();
  std::vector<const Isa*> found;
  if (has_avx512_bf16()) found.push_back(&avx512_bf16());
  if (has_avx512_vnni()) found.push_back(&avx512_vnni);
  if (has_avx_vnni()) found.push_back(&avx_vnni());
  if (has_avx2()) found.push_back(&avx2);
  return found;
}

}  // namespace fxq
