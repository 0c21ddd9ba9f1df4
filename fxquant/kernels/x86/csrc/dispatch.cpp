// Which instruction set runs: asked of the CPU once, unless one is named.
#include <atomic>

#include "core.h"

namespace fxq {

namespace {

bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// As AVX-512 VNNI, but for attention.
const Isa& avx512_bf16() {
  static const Isa isa = [] {
    Isa changed = avx512_vnni;
    changed.name = "avx512_bf16";
    changed.attention = attention_avx512_bf16;
    return changed;
  }();
  return isa;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const Isa* best() {
  __builtin_cpu_init();
  return has_avx512_bf16() ? &avx512_bf16() : has_avx512_vnni() ? &avx512_vnni : has_avx2() ? &avx2 : nullptr;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> isa{best()};
  return isa;
}

}  // namespace

const Isa* isa() { return current().load(std::memory_order_relaxed); }

bool use(std::string_view name) {
  const Isa* wanted = name == "avx512_bf16" && has_avx512_bf16() ? &avx512_bf16()
                      : name == avx512_vnni.name && has_avx512_vnni() ? &avx512_vnni
                      : name == avx2.name && has_avx2()             ? &avx2
                                                                    : nullptr;
  if (wanted) current().store(wanted);
  return wanted != nullptr;
}

}  // namespace fxq
