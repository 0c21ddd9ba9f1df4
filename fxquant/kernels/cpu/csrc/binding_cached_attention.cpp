// The torch ops of rotary embeddings and of attention with a cache: new keys and values go behind those of the cache,
// queries and keys are normalized and turned on the way, and few queries take another way through the core than many.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "attention_operands.h"
#include "binding_growing.h"

namespace fxq::cached_attention_binding {

using at::Tensor;
using fxq::Heads;
using std::optional;

// Factors (batch or 1, positions, rotated), with axes of size 1 before the positions allowed.
void set_factors(const Tensor& given, int64_t batch, int64_t positions, int64_t rotated, const float*& data,
                 int64_t (&stride)[2]) {
  TORCH_CHECK(given.dim() >= 2 && given.scalar_type() == at::kFloat && given.size(-1) == rotated &&
                  (given.stride(-1) == 1 || rotated == 1),
              "fxquant: rotary factors are float32 (…, positions, ", rotated, "), not ", given.sizes());
  const int64_t rows = given.size(-2), first = given.dim() > 2 ? given.size(0) : 1;
  TORCH_CHECK((rows == positions || rows == 1) && (first == batch || first == 1) &&
                  given.numel() == rows * first * rotated,
              "fxquant: rotary factors ", given.sizes(), " do not fit ", batch, " sequences of ", positions, " positions");
  data = given.const_data_ptr<float>();
  stride[0] = given.dim() > 2 && first == batch && batch > 1 ? given.stride(0) : 0;
  stride[1] = rows == positions && rows > 1 ? given.stride(-2) : 0;
}

// `first` is the column at which the first head begins.
fxq::Rotary rotary_of(const Heads& x, int64_t first, float* y, const int64_t (&y_stride)[3], const optional<Tensor>& cos,
                      const optional<Tensor>& sin, bool interleaved) {
  fxq::Rotary op{};
  op.x = static_cast<const float*>(x.head(0)) + first;
  op.y = y;
  fxq::copy(x.stride, op.x_stride);
  fxq::copy(y_stride, op.y_stride);
  op.positions = x.positions;
  op.features = x.features;
  op.interleaved = interleaved;
  if (!cos) return op;
  op.rotated = cos->size(-1);
  TORCH_CHECK(sin && op.rotated % 2 == 0 && op.rotated <= x.features, "fxquant: rotary factors for ", op.rotated,
              " features of ", x.features);
  set_factors(*cos, x.batch, x.positions, op.rotated, op.cos, op.cos_stride);
  set_factors(*sin, x.batch, x.positions, op.rotated, op.sin, op.sin_stride);
  return op;
}

void set_norm(fxq::Rotary& op, const optional<Tensor>& weight, double eps) {
  if (!weight) return;
  TORCH_CHECK(weight->scalar_type() == at::kFloat && weight->is_contiguous() && weight->numel() == op.features,
              "fxquant: the weights of a head's norm are float32 (", op.features, "), not ", weight->sizes());
  op.norm = weight->const_data_ptr<float>();
  op.eps = static_cast<float>(eps);
}

// Whole sequences and heads, in turn.
void rotate_all(const fxq::Rotary& op, int64_t batch, int64_t heads) {
  const fxq::Isa& kernels = fxq::chosen_isa();
  const int64_t threads = batch * heads * op.positions * op.features < fxq::kSerialScores ? 1 : at::get_num_threads();
  fxq::over(threads, batch * heads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernels.rotate(op, i / heads, i % heads);
  });
}

Tensor rotary(const Tensor& x_, const Tensor& cos, const Tensor& sin, bool interleaved) {
  TORCH_CHECK(x_.dim() == 4, "fxquant: rotary takes (batch, heads, positions, features), not ", x_.sizes());
  const Heads x(x_.transpose(1, 2), x_.size(1), false, "rotated operand");
  const Tensor y = at::empty({x.batch, x.positions, x_.size(1), x.features}, x.held.options());
  if (!y.numel()) return y.transpose(1, 2);
  const int64_t stride[3] = {y.stride(0), y.stride(1), y.stride(2)};
  const auto op = rotary_of(x, 0, y.mutable_data_ptr<float>(), stride, cos.contiguous(), sin.contiguous(), interleaved);
  rotate_all(op, x.batch, x_.size(1));
  return y.transpose(1, 2);
}

// A tensor (batch, heads, positions, features) as attention counts strides.
void set_cache(const Tensor& cache, const void*& data, int64_t* stride) {
  data = cache.const_data_ptr<float>();
  stride[0] = cache.stride(0);
  stride[1] = cache.stride(2);
  stride[2] = cache.stride(1);
}

// A mask of padding may have more rows and columns than batch and keys; other masks broadcast.
void set_cached_mask(fxq::Attention& op, const Tensor& mask, int64_t batch) {
  if (mask.dim() != 2 || mask.scalar_type() != at::kBool) return fxq::set_mask(op, mask, batch);
  const int64_t rows = std::min(mask.size(0), batch);
  TORCH_CHECK((rows == batch || rows == 1) && mask.size(1) >= op.keys, "fxquant: the mask is ", mask.sizes(), ", for ",
              batch, " sequences of ", op.keys, " keys");
  op.padding = mask.const_data_ptr<bool>();
  op.padding_stride[0] = rows == batch ? mask.stride(0) : 0;
  op.padding_stride[1] = mask.stride(1);
}

// What is added to the scores beside a mask that says which of them count.
void set_bias(fxq::Attention& op, const Tensor& bias, int64_t batch) {
  TORCH_CHECK(!op.bias && bias.dim() == 4 && bias.scalar_type() == at::kFloat, "fxquant: attention's bias is ",
              bias.scalar_type(), " of ", bias.dim(), " dimensions; it takes float32 of 4, and a mask of bool beside it");
  fxq::set_mask(op, bias, batch);
}

struct Operands {
  Heads q, k, v;
  int64_t k_first, v_first;  // the columns at which they begin
};

Operands operands(const Tensor& q, const optional<Tensor>& k, const optional<Tensor>& v, int64_t heads, int64_t kv_heads,
                  int64_t groups) {
  TORCH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "fxquant: attention's ", heads,
              " heads cannot share ", kv_heads, " key heads evenly");
  TORCH_CHECK(k.has_value() == v.has_value(), "fxquant: attention takes both key and value, or neither");
  TORCH_CHECK(groups == 1 || (!k && groups == heads && groups == kv_heads), "fxquant: ", groups, " groups of merged heads, of ",
              heads, " queries and ", kv_heads, " keys; it takes 1, or as many as each of them");
  if (k) return {Heads(q, heads, false, "query"), Heads(*k, kv_heads, false, "key"), Heads(*v, kv_heads, false, "value"), 0, 0};
  TORCH_CHECK(q.dim() == 3, "fxquant: attention's merged query, key and value have 3 dimensions, not ", q.dim());
  Heads merged(q, heads + 2 * kv_heads, false, "merged query, key and value");
  const int64_t features = merged.features;
  if (groups == 1) return {merged, merged, merged, heads * features, (heads + kv_heads) * features};
  merged.stride[2] *= 3;
  return {merged, merged, merged, features, 2 * features};
}

void check_cache(const Tensor& past, const Heads& x, int64_t heads, const char* name) {
  TORCH_CHECK(past.dim() == 4 && past.scalar_type() == at::kFloat && past.size(0) == x.batch && past.size(1) == heads &&
                  past.size(3) == x.features,
              "fxquant: the cache of ", name, " is ", past.scalar_type(), " ", past.sizes(), "; expected float32 (", x.batch,
              ", ", heads, ", length, ", x.features, ")");
}

std::tuple<Tensor, Tensor, Tensor> cached_attention(const Tensor& q_, const optional<Tensor>& k_, const optional<Tensor>& v_,
                                                    const Tensor& past_key, const Tensor& past_value,
                                                    const optional<Tensor>& mask, const optional<Tensor>& bias,
                                                    const optional<Tensor>& q_norm, const optional<Tensor>& k_norm,
                                                    const optional<Tensor>& cos, const optional<Tensor>& sin,
                                                    int64_t heads, int64_t kv_heads, double scale, optional<double> cap,
                                                    optional<int64_t> diagonal, optional<int64_t> window, double eps,
                                                    bool interleaved, int64_t groups) {
  const Operands of = operands(q_, k_, v_, heads, kv_heads, groups);
  const int64_t batch = of.q.batch, count = of.q.positions, features = of.q.features;
  TORCH_CHECK(of.k.batch == batch && of.v.batch == batch && of.k.positions == count && of.v.positions == count &&
                  of.k.features == features && of.v.features == features,
              "fxquant: attention's query, key and value differ in batch, positions or features");
  check_cache(past_key, of.k, kv_heads, "keys");
  check_cache(past_value, of.v, kv_heads, "values");
  TORCH_CHECK(past_key.size(2) == past_value.size(2), "fxquant: the cache has ", past_key.size(2), " keys and ",
              past_value.size(2), " values");
  const int64_t past = past_key.size(2);
  const Tensor key = fxq::grown(past_key, count), value = fxq::grown(past_value, count);
  const Tensor y = at::empty({batch, count, heads * features}, past_key.options());
  if (!y.numel()) return {y, key, value};

  fxq::Attention op{};
  op.heads = heads;
  op.kv_heads = kv_heads;
  op.features = features;
  op.queries = count;
  op.keys = past + count;
  op.scale = static_cast<float>(scale);
  op.cap = static_cast<float>(cap.value_or(0));
  op.causal = diagonal.has_value();
  op.diagonal = diagonal.value_or(0);
  op.window = window.value_or(0);
  TORCH_CHECK(op.window >= 0 && (op.causal || !window), "fxquant: a window of ", op.window,
              " keys; it is positive and takes a diagonal");
  if (mask) set_cached_mask(op, *mask, batch);
  if (bias) set_bias(op, *bias, batch);
  set_cache(key, op.k, op.k_stride);
  set_cache(value, op.v, op.v_stride);
  op.y = y.mutable_data_ptr<float>();
  op.y_stride = heads * features;

  const auto into = [past](const Tensor& cache) { return cache.mutable_data_ptr<float>() + past * cache.stride(2); };
  const int64_t k_stride[] = {op.k_stride[0], op.k_stride[1], op.k_stride[2]};
  const int64_t v_stride[] = {op.v_stride[0], op.v_stride[1], op.v_stride[2]};
  auto keys = rotary_of(of.k, of.k_first, into(key), k_stride, cos, sin, interleaved);
  set_norm(keys, k_norm, eps);
  const auto values = rotary_of(of.v, of.v_first, into(value), v_stride, {}, {}, false);
  // Queries that are neither normalized nor turned are read where they are.
  const bool made = cos || q_norm;
  const Tensor turned = made ? at::empty({batch, count, heads, features}, past_key.options()) : Tensor();
  fxq::Rotary queries{};
  op.q = of.q.head(0);
  fxq::copy(of.q.stride, op.q_stride);
  if (made) {
    const int64_t stride[] = {turned.stride(0), turned.stride(1), turned.stride(2)};
    queries = rotary_of(of.q, 0, turned.mutable_data_ptr<float>(), stride, cos, sin, interleaved);
    set_norm(queries, q_norm, eps);
    op.q = queries.y;
    fxq::copy(stride, op.q_stride);
  }
  if (count > fxq::kFew) {
    rotate_all(keys, batch, kv_heads);
    rotate_all(values, batch, kv_heads);
    if (made) rotate_all(queries, batch, heads);
    fxq::run(op, batch, batch * op.queries * op.keys);
    return {y, key, value};
  }
  const fxq::Isa& kernels = fxq::chosen_isa();
  const auto write = [&](int64_t sequence, int64_t head) {
    kernels.rotate(keys, sequence, head);
    kernels.rotate(values, sequence, head);
  };
  fxq::run_few(op, batch, write, [&](int64_t sequence, int64_t head) {
    if (made) kernels.rotate(queries, sequence, head);
  });
  return {y, key, value};
}

// The schemas are defined in Python (rotary.py, cached_attention.py), where the ops have implementations that run anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) {
  m.impl("rotary", rotary);
  m.impl("cached_attention", cached_attention);
}

}  // namespace fxq::cached_attention_binding
