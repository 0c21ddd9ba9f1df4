// Runs the arithmetic core alone, without torch, over shapes that do not fit its blocks, on buffers of exact size: under
// AddressSanitizer and UndefinedBehaviorSanitizer a read or write past an end stops it. sanitize.py builds and runs it.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "core.h"
#include "row_program.h"

namespace {

using namespace fxq;

// A buffer on the heap of exactly n values: a vector's memory may be longer.
template <class T>
struct Exact {
  std::unique_ptr<T[]> data;
  explicit Exact(int64_t n) : data(new T[n > 0 ? n : 1]) {
    for (int64_t i = 0; i < n; ++i) data[i] = static_cast<T>(std::rand() % 255 - 127);
  }
  T* get() const { return data.get(); }
};

struct Weights {
  int64_t n, k, depths, blocks;
  Exact<int8_t> packed;
  Exact<float> scale, bias;
  Exact<int32_t> sum;
  Weights(int64_t n, int64_t k)
      : n(n), k(k), depths((k + 3) / 4), blocks((n + 63) / 64), packed(blocks * depths * 256), scale(n), bias(n), sum(n) {}

  Linear op(Activation activation) const {
    Linear linear{};
    linear.weight = packed.get();
    linear.n = n;
    linear.depths = depths;
    linear.weight_scale = scale.get();
    linear.per_column = 1;
    linear.weight_sum = sum.get();
    linear.bias = bias.get();
    linear.activation = activation;
    return linear;
  }
};

constexpr RowScheme kAffine{false, 0, 255, 128, 127.5f, 0};

void linears(const Isa& isa, int64_t rows, int64_t n, int64_t k) {
  const Weights w(n, k);
  const int64_t stride = w.depths * kDepth;
  Exact<float> x(rows * k), y(rows * n), scale(rows);
  Exact<uint8_t> q(rows * stride), bytes(rows * n);
  Exact<int32_t> zero_point(rows);
  Exact<Half> halves(rows * n);
  isa.quantize_rows(x.get(), rows, k, kAffine, q.get(), stride, scale.get(), zero_point.get());
  isa.quantize_all(x.get(), rows * k, kAffine, 0.5f, 3, Exact<uint8_t>(rows * k).get());
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu, Activation::silu}) {
    Linear op = w.op(activation);
    op.x = q.get();
    op.x_stride = stride;
    op.x_scale = scale.get();
    op.x_zero_point = zero_point.get();
    op.per_row = 1;
    op.y = y.get();
    isa.linear(op, 0, rows, 0, w.blocks);
    op.y = nullptr;
    op.y_half = halves.get();
    isa.linear(op, 0, rows, 0, w.blocks);
    op.y_half = nullptr;
    op.y_q = bytes.get();
    op.out_scale = 0.1f;
    op.out_qmax = 255;
    isa.linear(op, 0, rows, 0, w.blocks);
  }
  isa.norm({n, w.scale.get(), w.bias.get(), 1e-5f, false}, y.get(), rows, y.get());
  isa.add(y.get(), y.get(), rows * n, y.get());
}

template <class Number>
void attentions(const Isa& isa, int64_t queries, int64_t keys, int64_t d, bool causal, bool padded) {
  const int64_t heads = 2;
  Exact<Number> q(queries * heads * d), k(keys * heads * d), v(keys * heads * d);
  Exact<float> y(queries * heads * d);
  Exact<bool> keep(keys);
  for (int64_t i = 0; i < keys; ++i) keep.get()[i] = i % 3 != 1;
  Attention op{};
  op.half = std::is_same_v<Number, Half>;
  op.q = q.get(), op.k = k.get(), op.v = v.get(), op.y = y.get();
  for (int64_t* stride : {op.q_stride, op.k_stride, op.v_stride}) stride[0] = 0, stride[1] = heads * d, stride[2] = d;
  op.y_stride = heads * d;
  op.heads = op.kv_heads = heads;
  op.features = d;
  op.queries = queries, op.keys = keys;
  op.scale = 0.2f;
  op.causal = causal;
  op.padding = padded ? keep.get() : nullptr;
  op.padding_stride[1] = 1;
  op.block_rows = (queries + 1) / 2;
  op.blocks = (queries + op.block_rows - 1) / op.block_rows;
  op.tasks = heads * op.blocks;
  Tasks tasks(op.tasks, 2);
  isa.attention(op, tasks, 1);
}

// x → linear → norm → linear with residual, on blocks of rows and by a team of two.
void programs(const Isa& isa, int64_t rows, int64_t n, int64_t k) {
  const Weights up(n, k), down(k, n);
  Exact<float> x(rows * k), out(rows * k);
  Program program;
  program.rows = rows;
  program.values.resize(4);
  program.values[0].width = k, program.values[0].data = x.get();
  program.values[1].width = program.values[2].width = n;
  program.values[3].width = k, program.values[3].data = out.get();
  Step first{StepKind::linear, 0}, norm{StepKind::norm, 1}, last{StepKind::linear, 2, 0};
  first.linear = up.op(Activation::gelu);
  last.linear = down.op(Activation::none);
  first.scheme = last.scheme = kAffine;
  norm.norm = {n, nullptr, nullptr, 1e-5f, true};
  program.steps = {first, norm, last};
  const int64_t scratch = place(program);
  run(program, isa, scratch, 0, rows);
  Team team;
  uint8_t* memory = shared_memory(program, scratch);
  const auto work = [&] { run_together(program, isa, scratch, memory, team, team.join(1, 2)); };
  std::thread other(work);
  work();
  other.join();
}

}  // namespace

int main() {
  for (const Isa* isa : instruction_sets()) {
    for (const int64_t rows : {1, 2, 5, 6, 7, 26})
      for (const int64_t n : {1, 63, 64, 65, 130})
        for (const int64_t k : {1, 3, 4, 17, 64, 100}) linears(*isa, rows, n, k), programs(*isa, rows, n, k);
    for (const int64_t queries : {1, 5, 17, 70})
      for (const int64_t keys : {1, 15, 33, 100})
        for (const int64_t d : {1, 7, 32, 65})
          for (const int how : {0, 1, 2}) {
            attentions<float>(*isa, queries, keys, d, how == 1, how == 2);
            attentions<Half>(*isa, queries, keys, d, how == 1, how == 2);
          }
    std::printf("%s: clean\n", isa->name);
  }
}
