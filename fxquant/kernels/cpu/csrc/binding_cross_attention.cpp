// The torch op of attention to keys and values that stay as they are from token to token.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "attention_operands.h"

namespace fxq::cross_attention_binding {

using at::Tensor;
using fxq::Heads;
using std::optional;

Tensor cross_attention(const Tensor& q_, const Tensor& key, const Tensor& value, const optional<Tensor>& mask, int64_t heads,
                       double scale) {
  TORCH_CHECK(key.dim() == 4 && value.dim() == 4, "fxquant: keys and values are (batch, heads, positions, features), not ",
              key.sizes(), " and ", value.sizes());
  const int64_t kv_heads = key.size(1);
  TORCH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "fxquant: attention's ", heads,
              " heads cannot share ", kv_heads, " key heads evenly");
  const Heads q(q_, heads, false, "query"), k(key.transpose(1, 2), kv_heads, false, "key"),
      v(value.transpose(1, 2), kv_heads, false, "value");
  for (const Heads* other : {&k, &v})
    TORCH_CHECK(other->batch == q.batch && other->features == q.features && other->positions == k.positions,
                "fxquant: attention's query, key and value do not fit: ", q_.sizes(), ", ", key.sizes(), ", ",
                value.sizes());
  const Tensor y = at::empty({q.batch, q.positions, heads * q.features}, q.held.options());
  fxq::Attention op{};
  op.heads = heads;
  op.kv_heads = kv_heads;
  op.features = q.features;
  op.queries = q.positions;
  op.keys = k.positions;
  op.scale = static_cast<float>(scale);
  if (mask) fxq::set_mask(op, *mask, q.batch);
  if (!y.numel()) return y;
  op.q = q.head(0), op.k = k.head(0), op.v = v.head(0);
  fxq::copy(q.stride, op.q_stride), fxq::copy(k.stride, op.k_stride), fxq::copy(v.stride, op.v_stride);
  op.y = y.mutable_data_ptr<float>();
  op.y_stride = heads * q.features;
  const auto nothing = [](int64_t, int64_t) {};
  if (op.queries <= fxq::kFew) fxq::run_few(op, q.batch, nothing, nothing);
  else fxq::run(op, q.batch, q.batch * op.queries * op.keys);
  return y;
}

// The schema is defined in Python (cross_attention.py), where the op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("cross_attention", cross_attention); }

}  // namespace fxq::cross_attention_binding
