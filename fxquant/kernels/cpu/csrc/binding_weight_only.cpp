// The torch op of linears with float activations and packed weights of 8 or 4 bits: checks and the split of the work.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "weight_only_operands.h"

namespace fxq::weight_only_binding {

using at::Tensor;
using std::optional;

// Floats of x that stay in a core's L2 cache beside a block of weights, and the least rows of a share of them.
constexpr int64_t kCached = int64_t{1} << 16, kShare = 48;

// Fill every group of x up to whole steps of weights, with zeros.
Tensor padded(const Tensor& x, fxq::WeightOnly& op) {
  const int64_t step = fxq::depths(op);
  if (op.k % step == 0 && (op.group % step == 0 || op.groups <= 1)) return x;
  const int64_t width = (op.group + step - 1) / step * step, k = op.k, rows = x.numel() / k;
  const Tensor y = at::empty({rows, op.groups * width}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = y.data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r, from += k)
    for (int64_t g = 0; g < op.groups; ++g, to += width)
      std::fill(std::copy(from + g * op.group, from + std::min((g + 1) * op.group, k), to), to + width, 0.0f);
  op.group = width;
  op.k = op.groups * width;
  return y;
}

Tensor linear_weight_only(const Tensor& x_, const Tensor& packed, const Tensor& weight_scale,
                          const optional<Tensor>& weight_zero_point, const optional<Tensor>& bias_,
                          const optional<Tensor>& residual_, std::string_view activation, int64_t columns,
                          int64_t group_size, optional<int64_t> activated) {
  fxq::WeightOnly op = fxq::weight_only_of(x_.size(-1), packed, weight_scale, weight_zero_point, columns, group_size);
  Tensor y = fxq::output_like(x_, columns, at::kFloat);
  op.activation = fxq::activation_of(activation);
  op.activated = activated.value_or(columns);
  TORCH_CHECK(op.activated >= columns || op.activated % fxq::kColumns == 0, "fxquant: the first ", op.activated,
              " columns have an activation, which are no whole blocks of ", fxq::kColumns);
  if (!y.numel()) return y;
  const auto bias = fxq::contiguous(bias_), residual = fxq::expanded(residual_, y);
  TORCH_CHECK(!bias || bias->numel() == columns, "fxquant: the bias is not one value for each of ", columns, " columns");
  const Tensor x = padded(x_.to(at::kFloat).contiguous(), op);
  op.x = x.const_data_ptr<float>();
  op.bias = bias ? bias->const_data_ptr<float>() : nullptr;
  op.residual = residual ? residual->const_data_ptr<float>() : nullptr;
  op.y = y.data_ptr<float>();

  const fxq::Isa& kernels = fxq::chosen_isa();
  const int64_t rows = y.numel() / columns, blocks = packed.size(0);
  const int64_t chunk = std::max(kShare, kCached / std::max<int64_t>(op.k, 1) / kShare * kShare);
  const auto run = [&](int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
    for (int64_t r = row; r < row_end; r += chunk) kernels.weight_only(op, r, std::min(r + chunk, row_end), block, block_end);
  };
  // A float multiply-accumulate takes the time of four of integers, and one row waits for memory besides.
  const int64_t threads = rows * columns * op.k < fxq::kSerial / 8 ? 1 : at::get_num_threads();
  // By columns each weight is unpacked by one thread only; by rows where the columns cannot be shared out evenly.
  if (blocks % threads && blocks < 8 * threads && rows >= kShare * threads) {
    fxq::over(threads, rows, [&](int64_t a, int64_t b) { run(a, b, 0, blocks); });
  } else {
    fxq::over(threads, blocks, [&](int64_t a, int64_t b) { run(0, rows, a, b); });
  }
  return y;
}

// The schema is defined in Python (weight_only.py), where the op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("packed_linear_weight_only", linear_weight_only); }

}  // namespace fxq::weight_only_binding
