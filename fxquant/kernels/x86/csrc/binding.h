// What the bindings of all kernels share: the instruction set in use, and the split of the work over torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "core.h"

namespace fxq {

// Below this many multiply-accumulates waking a second thread costs more than it gives.
constexpr int64_t kSerial = int64_t{1} << 21;

inline const Isa& chosen_isa() {
  const Isa* chosen = isa();
  TORCH_CHECK(chosen, "fxquant: this CPU has neither avx512_vnni nor avx2");
  return *chosen;
}

// Call work(begin, end) for parts of [0, count), one for each of up to `threads` threads.
inline void over(int64_t threads, int64_t count, const std::function<void(int64_t, int64_t)>& work) {
  if (threads == 1) return work(0, count);
  at::parallel_for(0, count, (count + threads - 1) / threads, work);
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(tensor->contiguous()) : tensor;
}

}  // namespace fxq
