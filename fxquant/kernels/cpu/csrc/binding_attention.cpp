// The torch op of attention over the core: checks, strides instead of copies, and the split of the work into tasks.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "attention_operands.h"

namespace fxq::attention_binding {

using at::Tensor;
using fxq::Heads;
using std::optional;

std::vector<int64_t> bounds(const Tensor& offsets, int64_t batch, int64_t positions) {
  TORCH_CHECK(offsets.dim() == 1 && offsets.numel() > 0, "fxquant: attention's offsets are one row of numbers");
  TORCH_CHECK(batch == 1, "fxquant: attention with offsets takes one row of tokens, not a batch of ", batch);
  const Tensor whole = offsets.to(at::kLong).contiguous();
  const int64_t* first = whole.const_data_ptr<int64_t>();
  std::vector<int64_t> found(first, first + whole.numel());
  TORCH_CHECK(found.front() == 0 && found.back() == positions && std::is_sorted(found.begin(), found.end()),
              "fxquant: attention's offsets rise from 0 to the number of tokens, ", positions);
  return found;
}

Tensor attention(const Tensor& q_, const optional<Tensor>& k_, const optional<Tensor>& v_, const optional<Tensor>& mask,
                 const optional<Tensor>& offsets, int64_t heads, int64_t kv_heads, double scale, bool causal, int64_t diagonal,
                 optional<int64_t> window, const optional<Tensor>& places) {
  TORCH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "fxquant: attention's ", heads,
              " heads cannot share ", kv_heads, " key heads evenly");
  TORCH_CHECK(k_.has_value() == v_.has_value(), "fxquant: attention takes both key and value, or neither");
  TORCH_CHECK(k_ || q_.dim() == 3, "fxquant: attention's merged query, key and value have 3 dimensions, not ", q_.dim());
  const auto is_half = [](const Tensor& x) { return x.scalar_type() == at::kBFloat16; };
  const bool half = is_half(q_) && (!k_ || (is_half(*k_) && is_half(*v_)));
  const Heads q(q_, k_ ? heads : heads + 2 * kv_heads, half, k_ ? "query" : "merged query, key and value");
  const optional<Heads> k = k_ ? optional<Heads>(Heads(*k_, kv_heads, half, "key")) : std::nullopt;
  const optional<Heads> v = v_ ? optional<Heads>(Heads(*v_, kv_heads, half, "value")) : std::nullopt;
  if (k)
    for (const Heads* other : {&*k, &*v})
      TORCH_CHECK(other->batch == q.batch && other->features == q.features && other->positions == k->positions,
                  "fxquant: attention's query, key and value do not fit: ", q_.sizes(), ", ", k_->sizes(), ", ",
                  v_->sizes());
  Tensor y = at::empty({q.batch, q.positions, heads * q.features}, q.held.options().dtype(at::kFloat));
  fxq::Attention op{};
  op.half = half;
  op.heads = heads;
  op.kv_heads = kv_heads;
  op.features = q.features;
  op.queries = q.positions;
  op.keys = k ? k->positions : q.positions;
  if (mask) fxq::set_mask(op, *mask, q.batch);
  TORCH_CHECK(causal || (!window && diagonal == 0), "fxquant: attention's diagonal and window take a causal order");
  TORCH_CHECK(window.value_or(1) > 0, "fxquant: attention's window of ", window.value_or(1), " keys is not positive");
  op.causal = causal;
  op.diagonal = diagonal;
  op.window = window.value_or(0);
  int64_t sequences = q.batch, scores = q.batch * op.queries * op.keys;
  std::vector<int64_t> starts;
  if (offsets) {
    TORCH_CHECK(!mask && op.keys == op.queries,
                "fxquant: attention with offsets takes no mask, and as many keys as queries");
    starts = bounds(*offsets, q.batch, q.positions);
    op.offsets = starts.data();
    sequences = static_cast<int64_t>(starts.size()) - 1;
    op.queries = scores = 0;
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t length = starts[i + 1] - starts[i];
      op.queries = std::max(op.queries, length);
      scores += length * length;
    }
    op.keys = op.queries;
  }
  TORCH_CHECK(!places || (offsets && places->dim() == 1 && places->numel() == q.positions),
              "fxquant: attention's places are one for each token of a row, with offsets");
  const Tensor every = places ? places->to(at::kLong).contiguous() : Tensor();
  if (places) op.places = every.const_data_ptr<int64_t>();
  if (!y.numel()) return y;
  op.q = q.head(0);
  op.k = k ? k->head(0) : q.head(heads);
  op.v = v ? v->head(0) : q.head(heads + kv_heads);
  fxq::copy(q.stride, op.q_stride);
  fxq::copy(k ? k->stride : q.stride, op.k_stride);
  fxq::copy(v ? v->stride : q.stride, op.v_stride);
  op.y = y.data_ptr<float>();
  op.y_stride = heads * q.features;
  op.scale = static_cast<float>(scale);
  fxq::run(op, sequences, scores);
  return y;
}

// The schema is defined in Python (attention.py), where the op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("attention", attention); }

}  // namespace fxq::attention_binding
