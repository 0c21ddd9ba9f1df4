// The torch ops of linears, quantization and embeddings over the core: checks and the shapes of packing.
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <string_view>
#include <vector>

#include "binding.h"

namespace fxq::linear_binding {

using at::Tensor;
using fxq::expanded;
using fxq::output_like;
using std::optional;
using std::string_view;

// Rows that one thread takes at a time: few enough that their bytes stay in its L2 cache, a multiple of every tile.
constexpr int64_t kChunk = 96;

struct Plan {
  int64_t rows, k, n, depths, blocks, threads;
  bool by_rows;

  Plan(const Tensor& x, const Tensor& packed, const Tensor& weight_sum)
      : k(x.size(-1)), n(weight_sum.numel()), depths(packed.size(1)), blocks(packed.size(0)) {
    fxq::check_packed(packed, k, n);
    rows = 1;
    for (const int64_t size : x.sizes().slice(0, x.dim() - 1)) rows *= size;
    threads = rows * n * k < fxq::kSerial ? 1 : at::get_num_threads();
    by_rows = rows >= 24 * threads;
  }
};

// Fill what does not depend on the rows.
fxq::Linear linear_of(const Plan& plan, const Tensor& packed, const Tensor& weight_scale, const Tensor& weight_sum,
                      const optional<Tensor>& bias, const optional<Tensor>& residual, string_view activation) {
  fxq::Linear op{};
  op.weight = packed.const_data_ptr<int8_t>();
  op.n = plan.n;
  op.depths = plan.depths;
  op.weight_scale = weight_scale.const_data_ptr<float>();
  op.per_column = weight_scale.numel() > 1;
  op.weight_sum = weight_sum.const_data_ptr<int32_t>();
  TORCH_CHECK(weight_scale.is_contiguous() && weight_sum.is_contiguous(),
              "fxquant: the weight's scales and sums are not contiguous");
  TORCH_CHECK(!bias || bias->numel() == plan.n, "fxquant: the bias is not one value for each of ", plan.n, " columns");
  TORCH_CHECK(op.per_column ? weight_scale.numel() == plan.n : weight_scale.numel() == 1,
              "fxquant: the weight's scale is neither one value nor one for each of ", plan.n, " columns");
  op.bias = bias ? bias->const_data_ptr<float>() : nullptr;
  op.residual = residual ? residual->const_data_ptr<float>() : nullptr;
  op.activation = fxq::activation_of(activation);
  return op;
}

void check_bytes(at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kChar || dtype == at::kByte, "fxquant: expected int8 or uint8, got ", dtype);
}

Tensor linear_dynamic(const Tensor& x_, const Tensor& packed, const Tensor& weight_scale, const Tensor& weight_sum,
                      const optional<Tensor>& bias, const optional<Tensor>& residual, string_view activation,
                      string_view dtype, bool symmetric, string_view range) {
  const Tensor x = x_.to(at::kFloat).contiguous();  // under autocast others may hand on half precision
  const Plan plan(x, packed, weight_sum);
  Tensor y = output_like(x, plan.n, at::kFloat);
  if (!y.numel()) return y;
  const auto bias_held = fxq::contiguous(bias), residual_held = expanded(residual, y);
  fxq::Linear op = linear_of(plan, packed, weight_scale, weight_sum, bias_held, residual_held, activation);
  const fxq::RowScheme scheme = fxq::scheme_of(dtype, symmetric, range);
  op.x_stride = plan.depths * fxq::kDepth;
  op.per_row = 1;
  const float* values = x.const_data_ptr<float>();
  float* out = y.data_ptr<float>();
  const fxq::Isa& kernels = fxq::chosen_isa();

  // Quantize some rows into this thread's buffer, then multiply them with some blocks of columns.
  const auto run = [&](int64_t row, int64_t rows, int64_t block, int64_t block_end) {
    thread_local std::vector<uint8_t> bytes;
    thread_local std::vector<float> scales(kChunk);
    thread_local std::vector<int32_t> zero_points(kChunk);
    bytes.resize(std::max<size_t>(bytes.size(), kChunk * op.x_stride + 64));
    kernels.quantize_rows(values + row * plan.k, rows, plan.k, scheme, bytes.data(), op.x_stride, scales.data(),
                          zero_points.data());
    fxq::Linear part = op;
    part.x = bytes.data();
    part.x_scale = scales.data();
    part.x_zero_point = zero_points.data();
    part.y = out + row * plan.n;
    if (op.residual) part.residual = op.residual + row * plan.n;
    kernels.linear(part, 0, rows, block, block_end);
  };
  const auto chunks = [&](int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
    for (int64_t r = row; r < row_end; r += kChunk) run(r, std::min(kChunk, row_end - r), block, block_end);
  };
  if (plan.by_rows) {
    fxq::over(plan.threads, plan.rows, [&](int64_t a, int64_t b) { chunks(a, b, 0, plan.blocks); });
  } else {
    fxq::over(plan.threads, plan.blocks, [&](int64_t a, int64_t b) { chunks(0, plan.rows, a, b); });
  }
  return y;
}

Tensor linear_static(const Tensor& x_, const Tensor& x_scale, const Tensor& x_zero_point, const Tensor& packed,
                     const Tensor& weight_scale, const Tensor& weight_sum, const optional<Tensor>& bias,
                     const optional<Tensor>& residual, string_view activation, const optional<Tensor>& out_scale,
                     const optional<Tensor>& out_zero_point, int64_t out_qmin, int64_t out_qmax,
                     at::ScalarType out_dtype) {
  Tensor x = x_.contiguous();
  check_bytes(x.scalar_type());
  if (out_scale) check_bytes(out_dtype);
  const Plan plan(x, packed, weight_sum);
  Tensor y = output_like(x, plan.n, out_scale ? out_dtype : at::kFloat);
  if (!y.numel()) return y;
  const int32_t shift = x.scalar_type() == at::kChar ? 128 : 0;
  if (shift) x = x.view(at::kByte).bitwise_xor(128);  // s8 → u8 + 128
  if (plan.k % fxq::kDepth) x = at::constant_pad_nd(x, {0, plan.depths * fxq::kDepth - plan.k});
  const Tensor scales = x_scale.contiguous();
  const Tensor zero_points = (shift ? x_zero_point.add(shift) : x_zero_point).contiguous();
  const auto bias_held = fxq::contiguous(bias), residual_held = expanded(residual, y);
  fxq::Linear op = linear_of(plan, packed, weight_scale, weight_sum, bias_held, residual_held, activation);
  op.x = x.const_data_ptr<uint8_t>();
  op.x_stride = plan.depths * fxq::kDepth;
  op.x_scale = scales.const_data_ptr<float>();
  op.x_zero_point = zero_points.const_data_ptr<int32_t>();
  op.per_row = scales.numel() > 1;
  TORCH_CHECK(scales.numel() == zero_points.numel() && (!op.per_row || scales.numel() == plan.rows),
              "fxquant: x has ", plan.rows, " rows, and ", scales.numel(), " scales");
  if (out_scale) {
    op.y_q = static_cast<uint8_t*>(y.data_ptr());
    op.out_scale = out_scale->item<float>();
    op.out_zero_point = out_zero_point->item<int32_t>();
    op.out_qmin = static_cast<int32_t>(out_qmin);
    op.out_qmax = static_cast<int32_t>(out_qmax);
  } else {
    op.y = y.data_ptr<float>();
  }
  const fxq::Isa& kernels = fxq::chosen_isa();
  if (plan.by_rows) {
    fxq::over(plan.threads, plan.rows, [&](int64_t a, int64_t b) {
      for (int64_t r = a; r < b; r += kChunk) kernels.linear(op, r, std::min(b, r + kChunk), 0, plan.blocks);
    });
  } else {
    fxq::over(plan.threads, plan.blocks, [&](int64_t a, int64_t b) { kernels.linear(op, 0, plan.rows, a, b); });
  }
  return y;
}

Tensor quantize_tensor(const Tensor& x_, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                       at::ScalarType dtype) {
  const Tensor wide = x_.to(at::kFloat);
  const Tensor x = wide.is_non_overlapping_and_dense() ? wide : wide.contiguous();  // in whatever order its axes lie
  check_bytes(dtype);
  Tensor q = at::empty_strided(x.sizes(), x.strides(), x.options().dtype(dtype));
  const fxq::RowScheme scheme{false, static_cast<int32_t>(qmin), static_cast<int32_t>(qmax), 0, 1.0f, 0};
  const float s = scale.item<float>();
  const int32_t z = zero_point.item<int32_t>();
  const float* values = x.const_data_ptr<float>();
  uint8_t* bytes = static_cast<uint8_t*>(q.data_ptr());
  fxq::over(x.numel() < 1 << 16 ? 1 : at::get_num_threads(), x.numel(),
       [&](int64_t a, int64_t b) { fxq::chosen_isa().quantize_all(values + a, b - a, scheme, s, z, bytes + a); });
  return q;
}

Tensor embedding(const Tensor& weight, const Tensor& weight_scale, const Tensor& indices_) {
  const Tensor indices = indices_.to(at::kLong).contiguous();
  TORCH_CHECK(weight_scale.numel() == 1 || weight_scale.numel() == weight.size(0),
              "fxquant: the table's scale is neither one value nor one for each of ", weight.size(0), " rows");
  auto shape = indices.sizes().vec();
  const int64_t d = weight.size(1), count = indices.numel(), table = weight.size(0);
  shape.push_back(d);
  Tensor y = at::empty(shape, weight.options().dtype(at::kFloat));
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < table, "index ", index[i], " is out of range for a table of ", table);
  const Tensor rows = weight.contiguous(), scales = weight_scale.contiguous();
  const int8_t* bytes = rows.const_data_ptr<int8_t>();
  const float* s = scales.const_data_ptr<float>();
  float* out = y.data_ptr<float>();
  fxq::over(count * d < 1 << 16 ? 1 : at::get_num_threads(), count, [&](int64_t a, int64_t b) {
    fxq::chosen_isa().embedding(bytes, s, scales.numel() > 1, index + a, b - a, d, out + a * d);
  });
  return y;
}

// Use the named instruction set from now on, or, with an empty name, say which is in use.
std::string use_isa(string_view name) {
  if (!name.empty() && !fxq::use(name)) {
    std::string known;
    for (const fxq::Isa* each : fxq::instruction_sets()) known += (known.empty() ? "" : ", ") + std::string(each->name);
    TORCH_CHECK(false, "fxquant: this CPU has no ", name, "; it has ", known.empty() ? "none" : known);
  }
  return fxq::isa() ? fxq::isa()->name : "";
}

// The schemas are defined in Python (packed.py), where each op has an implementation that runs anywhere.
TORCH_LIBRARY_FRAGMENT(fxquant, m) { m.def("cpu_isa(str name) -> str", use_isa); }

TORCH_LIBRARY_IMPL(fxquant, CPU, m) {
  m.impl("packed_linear_dynamic_int8", linear_dynamic);
  m.impl("packed_linear_int8", linear_static);
  m.impl("quantize_static", quantize_tensor);
  m.impl("rows_embedding_int8", embedding);
}

}  // namespace fxq::linear_binding
