// Which of AArch64's instruction sets this CPU has, as the system tells.
#include "neon.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fxq {

namespace {

#if defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dot() { return has("hw.optional.arm.FEAT_DotProd"); }
[[maybe_unused]] bool has_i8mm() { return has_dot() && has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
bool has_dot() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
[[maybe_unused]] bool has_i8mm() { return has_dot() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#else
bool has_dot() { return false; }
[[maybe_unused]] bool has_i8mm() { return false; }
#endif

using LinearRows = decltype(Isa::linear);

// As NEON, but for linears.
Isa changed(const char* name, LinearRows linear) {
  Isa isa = neon;
  isa.name = name;
  isa.linear = linear;
  return isa;
}

}  // namespace

std::vector<const Isa*> instruction_sets() {
  static const Isa dot = changed("neon_dot", linear_neon_dot);
  std::vector<const Isa*> found;
#if FXQ_HAS_I8MM
  static const Isa i8mm = changed("neon_i8mm", linear_neon_i8mm);
  if (has_i8mm()) found.push_back(&i8mm);
#endif
  if (has_dot()) found.push_back(&dot);
  found.push_back(&neon);
  return found;
}

}  // namespace fxq
