// The torch op of linears with float activations and packed weights of 8 or 4 bits: checks and the split of the work.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "binding.h"

namespace {

using at::Tensor;
using std::optional;

// Floats of x that stay in a core's L2 cache beside a block of weights, and the least rows of a share of them.
constexpr int64_t kCached = int64_t{1} << 16, kShare = 48;

// Weights of a column that are stored, and read, together.
int64_t depths(const fxq::WeightOnly& op) { return 32 / op.bits; }

fxq::WeightOnly shape_of(const Tensor& x, const Tensor& packed, const Tensor& scale, const optional<Tensor>& zero_point,
                         int64_t columns, int64_t group) {
  TORCH_CHECK(packed.is_contiguous() && scale.is_contiguous() && packed.dim() == (packed.scalar_type() == at::kChar ? 4 : 5),
              "fxquant: the weight is not packed");
  TORCH_CHECK(group > 0, "fxquant: a group of ", group, " weights");
  fxq::WeightOnly op{};
  op.bits = packed.dim() == 4 ? 8 : 4;
  op.k = x.size(-1);
  op.n = columns;
  op.group = group;
  op.groups = (op.k + group - 1) / group;
  const int64_t blocks = (columns + fxq::kColumns - 1) / fxq::kColumns;
  const int64_t step = depths(op), steps = packed.size(2) / (op.bits == 8 ? step : 1);
  TORCH_CHECK(packed.size(1) == op.groups && (!op.groups || steps == (group + step - 1) / step), "fxquant: x has ", op.k, " features, in groups of ", group, "; the packed weight is ", packed.sizes());
  const int64_t each[] = {blocks, op.groups, fxq::kColumns};
  TORCH_CHECK(packed.size(0) == blocks && scale.sizes() == at::IntArrayRef(each), "fxquant: ", columns,
              " columns need a packed weight of ", blocks, " blocks and scales ", at::IntArrayRef(each), ", not ",
              packed.size(0), " and ", scale.sizes());
  TORCH_CHECK(!zero_point || (zero_point->sizes() == scale.sizes() && zero_point->is_contiguous()),
              "fxquant: the zero points are not one for each scale");
  op.weight = static_cast<const int8_t*>(packed.const_data_ptr());
  op.block_bytes = blocks ? packed.numel() / blocks : 0;
  op.scale = scale.const_data_ptr<float>();
  op.zero_point = zero_point ? zero_point->const_data_ptr<int8_t>() : nullptr;
  return op;
}

// Fill every group of x up to whole steps of weights, with zeros.
Tensor padded(const Tensor& x, fxq::WeightOnly& op) {
  const int64_t step = depths(op);
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
  fxq::WeightOnly op = shape_of(x_, packed, weight_scale, weight_zero_point, columns, group_size);
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

}  // namespace

// The schema is defined in Python (weight_only.py), where the op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("x86_packed_linear_weight_only", linear_weight_only); }
