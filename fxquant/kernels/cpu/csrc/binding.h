// What the bindings of all kernels share: the instruction set in use, and the split of the work over torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <functional>
#include <optional>
#include <string_view>

#include "core.h"

namespace fxq {

// Below this many multiply-accumulates waking a second thread costs more than it gives.
constexpr int64_t kSerial = int64_t{1} << 21;

inline const Isa& chosen_isa() {
  const Isa* chosen = isa();
  TORCH_CHECK(chosen, "fxquant: this CPU has none of the instruction sets that the C++ kernels are written for");
  return *chosen;
}

// Call work(begin, end) for parts of [0, count), one for each of up to `threads` threads.
inline void over(int64_t threads, int64_t count, const std::function<void(int64_t, int64_t)>& work) {
  if (threads == 1) return work(0, count);
  at::parallel_for(0, count, (count + threads - 1) / threads, work);
}

inline Activation activation_of(std::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  TORCH_CHECK(name == "silu", "fxquant: unknown activation '", name, "'; known: none, relu, gelu, gelu_tanh, silu");
  return Activation::silu;
}

inline RowScheme scheme_of(std::string_view dtype, bool symmetric, std::string_view range) {
  const bool is_signed = dtype == "int8", full = range == "full";
  TORCH_CHECK(is_signed || dtype == "uint8", "fxquant: activations are int8 or uint8, not ", dtype);
  RowScheme scheme{symmetric, is_signed ? -128 : 0, is_signed ? 127 : 255, is_signed ? 0 : 128, 0.0f,
                        is_signed ? 128 : 0};
  if (symmetric && is_signed && !full) scheme.qmin = -127;
  const float half = static_cast<float>(scheme.qmax - scheme.qmin) / 2;
  scheme.divisor = symmetric && !(is_signed && full) ? static_cast<float>(scheme.qmax - scheme.middle) : half;
  return scheme;
}

// A weight of n columns for x of k features.
inline void check_packed(const at::Tensor& packed, int64_t k, int64_t n) {
  TORCH_CHECK(packed.dim() == 4 && packed.is_contiguous() && packed.size(2) == kColumns && packed.size(3) == kDepth &&
                  packed.size(0) == (n + kColumns - 1) / kColumns,
              "fxquant: the weight is not packed for ", n, " columns");
  TORCH_CHECK((k + kDepth - 1) / kDepth == packed.size(1), "fxquant: x has ", k, " features, the weight ",
              packed.size(1) * kDepth, " or up to ", kDepth - 1, " fewer");
  TORCH_CHECK(k <= kDeepest, "fxquant: the weight has ", k, " features; these kernels are exact up to ", kDeepest);
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(tensor->contiguous()) : tensor;
}

// An empty tensor in the shape of x but for the last axis, which has n.
inline at::Tensor output_like(const at::Tensor& x, int64_t n, at::ScalarType dtype) {
  auto shape = x.sizes().vec();
  shape.back() = n;
  return at::empty(shape, x.options().dtype(dtype));
}

inline std::optional<at::Tensor> expanded(const std::optional<at::Tensor>& residual, const at::Tensor& y) {
  if (!residual) return residual;
  return residual->to(at::kFloat).expand(y.sizes()).contiguous();
}

}  // namespace fxq
