// The torch op of attention over the core: checks, strides instead of copies, and the split of the work into tasks.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "binding.h"

namespace {

using at::Tensor;
using std::optional;

// Below this many multiply-accumulates waking a second thread costs more than it gives.
constexpr int64_t kSerial = int64_t{1} << 19;
// A head's rows are split where there are fewer heads than this many for each thread.
constexpr int64_t kTasksPerThread = 4;

// Rows of heads: (batch, positions, heads·features), or with heads and features apart.
struct Heads {
  Tensor held;
  int64_t batch, positions, features;
  int64_t stride[3];  // batch, position, head

  Heads(const Tensor& x, int64_t heads, bool half, const char* name) : held(x) {
    TORCH_CHECK(x.dim() == 3 || x.dim() == 4, "fxquant: attention's ", name, " has ", x.dim(),
                " dimensions; it takes (batch, positions, heads·features) or (batch, positions, heads, features)");
    if (!half && held.scalar_type() != at::kFloat) held = held.to(at::kFloat);
    if (held.stride(-1) != 1 && held.size(-1) > 1) held = held.contiguous();
    batch = held.size(0);
    positions = held.size(1);
    if (x.dim() == 4) {
      TORCH_CHECK(held.size(2) == heads, "fxquant: attention's ", name, " has ", held.size(2), " heads, not ", heads);
      features = held.size(3);
      stride[2] = held.stride(2);
    } else {
      TORCH_CHECK(held.size(2) % heads == 0, "fxquant: attention's ", name, " has ", held.size(2),
                  " columns, which are not ", heads, " heads");
      stride[2] = features = held.size(2) / heads;
    }
    stride[0] = held.stride(0);
    stride[1] = held.stride(1);
  }

  const void* head(int64_t h) const {
    return static_cast<const char*>(held.const_data_ptr()) + h * stride[2] * held.element_size();
  }
};

void copy(const int64_t (&from)[3], int64_t* to) { std::copy(from, from + 3, to); }

// The stride of an axis that has to have `size` places, or one for all.
int64_t broadcast(const Tensor& mask, int64_t axis, int64_t size) {
  TORCH_CHECK(mask.size(axis) == size || mask.size(axis) == 1, "fxquant: attention's mask has ", mask.size(axis),
              " places along axis ", axis, ", not ", size, " or 1");
  return mask.size(axis) == size ? mask.stride(axis) : 0;
}

void set_mask(fxq::Attention& op, const Tensor& mask, int64_t batch) {
  const bool is_bool = mask.scalar_type() == at::kBool;
  if (mask.dim() == 2 && is_bool) {
    op.padding = mask.const_data_ptr<bool>();
    op.padding_stride[0] = broadcast(mask, 0, batch);
    op.padding_stride[1] = broadcast(mask, 1, op.keys);
    return;
  }
  TORCH_CHECK(mask.dim() == 4 && (is_bool || mask.scalar_type() == at::kFloat), "fxquant: attention's mask is ",
              mask.scalar_type(), " of ", mask.dim(),
              " dimensions; it takes bool (batch, keys), or bool or float of 4 dimensions");
  const int64_t sizes[] = {batch, op.heads, op.queries, op.keys};
  for (int64_t axis = 0; axis < 4; ++axis) op.mask_stride[axis] = broadcast(mask, axis, sizes[axis]);
  if (is_bool) op.keep = mask.const_data_ptr<bool>();
  else op.bias = mask.const_data_ptr<float>();
}

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

// Cut the work into tasks: whole heads where there are many, some of their rows else; returns how many threads it keeps.
int64_t split(fxq::Attention& op, int64_t sequences, int64_t scores) {
  const int64_t heads = sequences * op.heads;
  const int64_t threads = 2 * scores * op.heads * op.features < kSerial ? 1 : at::get_num_threads();
  const int64_t wanted = threads == 1 ? 1 : (kTasksPerThread * threads + heads - 1) / heads;
  op.block_rows = (op.queries + wanted - 1) / wanted;
  op.blocks = (op.queries + op.block_rows - 1) / op.block_rows;
  op.tasks = heads * op.blocks;
  return threads;
}

Tensor attention(const Tensor& q_, const optional<Tensor>& k_, const optional<Tensor>& v_, const optional<Tensor>& mask,
                 const optional<Tensor>& offsets, int64_t heads, int64_t kv_heads, double scale, bool causal) {
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
  if (mask) set_mask(op, *mask, q.batch);
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
  if (!y.numel()) return y;
  op.q = q.head(0);
  op.k = k ? k->head(0) : q.head(heads);
  op.v = v ? v->head(0) : q.head(heads + kv_heads);
  copy(q.stride, op.q_stride);
  copy(k ? k->stride : q.stride, op.k_stride);
  copy(v ? v->stride : q.stride, op.v_stride);
  op.y = y.data_ptr<float>();
  op.y_stride = heads * q.features;
  op.scale = static_cast<float>(scale);
  op.causal = causal;
  const int64_t threads = split(op, sequences, scores);
  const fxq::Isa& kernels = fxq::chosen_isa();
  fxq::Tasks tasks(op.tasks, threads);
  fxq::over(threads, threads, [&](int64_t part, int64_t) { kernels.attention(op, tasks, part); });
  return y;
}

}  // namespace

// The schema is defined in Python (attention.py), where the op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) { m.impl("x86_attention", attention); }
