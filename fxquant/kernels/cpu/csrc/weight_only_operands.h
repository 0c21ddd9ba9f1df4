// What the torch ops of weights of 8 or 4 bits share: the checks of a packed weight.
#pragma once

#include "binding.h"

namespace fxq {

// Weights of a column that are stored, and read, together.
inline int64_t depths(const WeightOnly& op) { return 32 / op.bits; }

// A weight of `columns` columns for `k` features, without operands; what it points to is the tensors'.
inline WeightOnly weight_only_of(int64_t k, const at::Tensor& packed, const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point, int64_t columns, int64_t group) {
  TORCH_CHECK(packed.is_contiguous() && scale.is_contiguous() && packed.dim() == (packed.scalar_type() == at::kChar ? 4 : 5),
              "fxquant: the weight is not packed");
  TORCH_CHECK(group > 0, "fxquant: a group of ", group, " weights");
  WeightOnly op{};
  op.bits = packed.dim() == 4 ? 8 : 4;
  op.k = k;
  op.n = columns;
  op.group = group;
  op.groups = (op.k + group - 1) / group;
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  const int64_t step = depths(op), steps = packed.size(2) / (op.bits == 8 ? step : 1);
  TORCH_CHECK(packed.size(1) == op.groups && (!op.groups || steps == (group + step - 1) / step), "fxquant: x has ", op.k, " features, in groups of ", group, "; the packed weight is ", packed.sizes());
  const int64_t each[] = {blocks, op.groups, kColumns};
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

}  // namespace fxq
