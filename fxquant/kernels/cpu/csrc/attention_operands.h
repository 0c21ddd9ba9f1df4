// What the torch ops of attention share: operands by their strides, masks, and the split of the work into tasks.
#pragma once

#include <algorithm>

#include "binding.h"

namespace fxq {

// Below this many multiply-accumulates of attention waking a second thread costs more than it gives.
constexpr int64_t kSerialScores = int64_t{1} << 19;
// A head's rows are split where there are fewer heads than this many for each thread.
constexpr int64_t kTasksPerThread = 4;

// Rows of heads: (batch, positions, heads·features), or with heads and features apart.
struct Heads {
  at::Tensor held;
  int64_t batch, positions, features;
  int64_t stride[3];  // batch, position, head

  Heads(const at::Tensor& x, int64_t heads, bool half, const char* name) : held(x) {
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

inline void copy(const int64_t (&from)[3], int64_t* to) { std::copy(from, from + 3, to); }

// The stride of an axis that has to have `size` places, or one for all.
inline int64_t broadcast(const at::Tensor& mask, int64_t axis, int64_t size) {
  TORCH_CHECK(mask.size(axis) == size || mask.size(axis) == 1, "fxquant: attention's mask has ", mask.size(axis),
              " places along axis ", axis, ", not ", size, " or 1");
  return mask.size(axis) == size ? mask.stride(axis) : 0;
}

inline void set_mask(Attention& op, const at::Tensor& mask, int64_t batch) {
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
  int64_t(&stride)[4] = is_bool ? op.keep_stride : op.bias_stride;
  for (int64_t axis = 0; axis < 4; ++axis) stride[axis] = broadcast(mask, axis, sizes[axis]);
  if (is_bool) op.keep = mask.const_data_ptr<bool>();
  else op.bias = mask.const_data_ptr<float>();
}

// Cut the work into tasks: whole heads where there are many, some of their rows else; returns how many threads it keeps.
inline int64_t split(Attention& op, int64_t sequences, int64_t scores) {
  const int64_t heads = sequences * op.heads;
  const int64_t threads = 2 * scores * op.heads * op.features < kSerialScores ? 1 : at::get_num_threads();
  const int64_t wanted = threads == 1 ? 1 : (kTasksPerThread * threads + heads - 1) / heads;
  op.block_rows = (op.queries + wanted - 1) / wanted;
  op.blocks = (op.queries + op.block_rows - 1) / op.block_rows;
  op.tasks = heads * op.blocks;
  return threads;
}

// Compute what an attention's fields say, with all threads where it is worth it.
inline void run(Attention& op, int64_t sequences, int64_t scores) {
  const int64_t threads = split(op, sequences, scores);
  const Isa& kernels = chosen_isa();
  Tasks tasks(op.tasks, threads);
  over(threads, threads, [&](int64_t part, int64_t) { kernels.attention(op, tasks, part); });
}

// Up to so many queries of a sequence read keys as they lie; for more it pays to pack them.
constexpr int64_t kFew = 8;
// Below so many numbers of keys that are read waking a second thread costs more than it gives.
constexpr int64_t kSerialKeys = int64_t{1} << 15;

// Compute attention of few queries, with all threads where it is worth it. `write(sequence, head)` comes before a key head
// is read, `turn(sequence, head)` before a query head is.
template <class Write, class Turn>
inline void run_few(const Attention& op, int64_t batch, const Write& write, const Turn& turn) {
  const Isa& kernels = chosen_isa();
  const int64_t group = op.heads / op.kv_heads, units = batch * op.kv_heads;
  const int64_t threads = units * op.keys * op.features < kSerialKeys ? 1 : at::get_num_threads();
  // A key head whose queries several threads share is written first, by one.
  const int64_t parts = std::min(group, (threads + units - 1) / units);
  for (int64_t i = 0; parts > 1 && i < units; ++i) write(i / op.kv_heads, i % op.kv_heads);
  over(threads, units * parts, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t unit = i / parts, part = i % parts, sequence = unit / op.kv_heads, head = unit % op.kv_heads;
      const int64_t begin = head * group + group * part / parts, end = head * group + group * (part + 1) / parts;
      if (parts == 1) write(sequence, head);
      for (int64_t h = begin; h < end; ++h) turn(sequence, h);
      kernels.decode(op, sequence, begin, end);
    }
  });
}

}  // namespace fxq
