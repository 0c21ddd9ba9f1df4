// Which instruction set runs: asked of the CPU once, unless one is named.
#include <atomic>

#include "core.h"

namespace fxq {

namespace {

std::atomic<const Isa*>& current() {
  static const std::vector<const Isa*> all = instruction_sets();
  static std::atomic<const Isa*> isa{all.empty() ? nullptr : all.front()};
  return isa;
}

}  // namespace

const Isa* isa() { return current().load(std::memory_order_relaxed); }

bool use(std::string_view name) {
  for (const Isa* each : instruction_sets())
    if (name == each->name) return current().store(each), true;
  return false;
}

}  // namespace fxq
