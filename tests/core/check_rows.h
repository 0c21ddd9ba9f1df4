// Checks of what works along rows: look-ups, norms, sums, rotations and attention.
#pragma once

#include "data.h"
#include "report.h"
#include "scalar.h"

namespace check {

using namespace fxq;

inline void embedding(const Isa& isa, Report& report) {
  Numbers numbers(5);
  for (const int64_t d : {1, 7, 8, 31})
    for (const int64_t per_row : {0, 1}) {
      const std::vector<int8_t> table = numbers.whole<int8_t>(5 * d, -128, 127);
      const std::vector<float> scale = numbers.reals(5, 1);
      const int64_t index[] = {4, 0, 4, 2};
      std::vector<float> y(4 * d), expected;
      isa.embedding(table.data(), scale.data(), per_row, index, 4, d, y.data());
      for (const int64_t i : index)
        for (int64_t j = 0; j < d; ++j) expected.push_back(static_cast<float>(table[i * d + j]) * scale[i * per_row]);
      report.equal("embedding", y.data(), expected.data(), 4 * d);
    }
}

inline void elementwise(const Isa& isa, Report& report) {
  Numbers numbers(6);
  for (const int64_t count : {0, 1, 8, 23}) {
    const std::vector<float> a = numbers.reals(count, 9), b = numbers.reals(count, 9);
    std::vector<float> sum(count), product(count), sums(count), products(count);
    isa.add(a.data(), b.data(), count, sum.data());
    isa.multiply(a.data(), b.data(), count, product.data());
    for (int64_t i = 0; i < count; ++i) sums[i] = a[i] + b[i], products[i] = a[i] * b[i];
    report.equal("add", sum.data(), sums.data(), count);
    report.equal("multiply", product.data(), products.data(), count);
    for (const Activation kind : {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
      isa.activate(kind, a.data(), count, sum.data());
      for (int64_t i = 0; i < count; ++i) report.close("activate", i, sum[i], scalar::activate(kind, a[i]), 2e-6);
    }
  }
}

inline void norm(const Isa& isa, Report& report) {
  Numbers numbers(7);
  for (const int64_t d : {1, 5, 8, 16, 29, 64})
    for (const bool rms : {false, true})
      for (const bool affine : {false, true}) {
        const std::vector<float> x = numbers.reals(3 * d, 4), weight = numbers.reals(d, 2), bias = numbers.reals(d, 1);
        std::vector<float> y(3 * d);
        const Norm op{d, affine ? weight.data() : nullptr, affine ? bias.data() : nullptr, 1e-5f, rms};
        isa.norm(op, x.data(), 3, y.data());
        for (int64_t r = 0; r < 3; ++r) {
          const std::vector<double> expected = scalar::norm(op, x.data() + r * d);
          for (int64_t i = 0; i < d; ++i)
            report.close("norm", r * d + i, y[r * d + i], expected[i], 4e-6);
        }
      }
}

inline void rotate(const Isa& isa, Report& report) {
  Numbers numbers(8);
  for (const int64_t features : {2, 8, 14, 40})
    for (const int64_t rotated : {int64_t{0}, features / 4 * 2, features})
      for (const bool interleaved : {false, true}) {
        const int64_t positions = 3, heads = 2;
        const std::vector<float> x = numbers.reals(positions * heads * features, 2);
        const std::vector<float> cos = numbers.reals(positions * rotated, 1), sin = numbers.reals(positions * rotated, 1);
        std::vector<float> y(x.size());
        Rotary op{x.data(), y.data(), {0, heads * features, features}, {0, heads * features, features}, positions,
                  features, rotated ? cos.data() : nullptr, sin.data(), {0, rotated}, {0, rotated}, rotated, interleaved};
        for (int64_t head = 0; head < heads; ++head) isa.rotate(op, 0, head);
        for (int64_t place = 0; place < static_cast<int64_t>(x.size()); ++place) {
          const int64_t d = place % features, at = place / (heads * features) * rotated + d, half = rotated / 2;
          if (d >= rotated) {
            report.equal("rotate, as it was", &y[place], &x[place], 1);
            continue;
          }
          const bool first = interleaved ? d % 2 == 0 : d < half;
          const int64_t step = interleaved ? 1 : half;
          const double other = first ? -double{x[place + step]} : double{x[place - step]};
          report.close("rotate", place, y[place], double{x[place]} * cos[at] + other * sin[at], 1e-6);
        }
      }
}

// One way to attend: which keys a query sees, and where they lie.
enum class Seen { all, causal, window, padded, kept, biased, capped, packed };

template <class Number>
inline double read(const void* from, int64_t place) {
  if constexpr (std::is_same_v<Number, Half>) return scalar::widen(static_cast<const Half*>(from)[place]);
  else return static_cast<const float*>(from)[place];
}

template <class Number>
inline void attention(const Isa& isa, Report& report, int64_t queries, int64_t keys, int64_t d, Seen seen, bool decode) {
  Numbers numbers(9 + queries + keys + d);
  const int64_t heads = 4, kv_heads = 2, batch = seen == Seen::packed ? 1 : 2;
  const auto fill = [&](int64_t count) {
    std::vector<Number> found;
    for (const float value : numbers.reals(count, 2))
      if constexpr (std::is_same_v<Number, Half>) found.push_back(scalar::narrow(value));
      else found.push_back(value);
    return found;
  };
  const auto q = fill(batch * queries * heads * d), k = fill(batch * keys * kv_heads * d), v = fill(batch * keys * kv_heads * d);
  std::vector<float> y(batch * queries * heads * d, 55.0f), bias = numbers.reals(heads * queries * keys, 3);
  std::vector<char> keep;
  for (int64_t i = 0; i < heads * queries * keys + batch * keys; ++i) keep.push_back(numbers.below(3) > 0);
  std::fill(keep.begin(), keep.begin() + keys, 0);  // the first query, or sequence, sees nothing
  const int64_t offsets[] = {0, keys / 3, keys};
  Attention op{};
  op.q = q.data(), op.k = k.data(), op.v = v.data(), op.half = std::is_same_v<Number, Half>;
  const auto strides = [](int64_t* to, int64_t rows, int64_t columns, int64_t features) {
    to[0] = rows * columns * features, to[1] = columns * features, to[2] = features;
  };
  strides(op.q_stride, queries, heads, d), strides(op.k_stride, keys, kv_heads, d), strides(op.v_stride, keys, kv_heads, d);
  op.y = y.data(), op.y_stride = heads * d;
  op.heads = heads, op.kv_heads = kv_heads, op.features = d, op.queries = queries, op.keys = keys;
  op.offsets = seen == Seen::packed ? offsets : nullptr;
  op.scale = 0.3f, op.causal = seen == Seen::causal || seen == Seen::window, op.diagonal = keys - queries;
  op.window = seen == Seen::window ? 7 : 0, op.cap = seen == Seen::capped ? 2.5f : 0.0f;
  op.padding = seen == Seen::padded ? reinterpret_cast<const bool*>(keep.data()) : nullptr;
  op.padding_stride[0] = keys, op.padding_stride[1] = 1;
  op.keep = seen == Seen::kept ? reinterpret_cast<const bool*>(keep.data()) : nullptr;
  op.bias = seen == Seen::biased || seen == Seen::window ? bias.data() : nullptr;
  for (int64_t* stride : {op.keep_stride, op.bias_stride}) stride[1] = queries * keys, stride[2] = keys, stride[3] = 1;
  op.block_rows = (queries + 1) / 2, op.blocks = (queries + op.block_rows - 1) / op.block_rows;
  const int64_t sequences = op.offsets ? 2 : batch;
  op.tasks = sequences * heads * op.blocks;
  Tasks tasks(op.tasks, 1);
  if (!decode) isa.attention(op, tasks, 0);
  for (int64_t s = 0; decode && s < sequences; ++s)
    for (int64_t h = 0; h < heads; h += 2) isa.decode(op, s, h, h + 2);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t start = op.offsets ? offsets[s] : s * queries, rows = op.offsets ? offsets[s + 1] - start : queries;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < rows; ++i) {
        const std::vector<double> expected = scalar::attend(op, s, h, i, read<Number>);
        const int64_t place = (start + i) * op.y_stride + h * d;
        for (int64_t f = 0; f < d; ++f) report.close(decode ? "decode" : "attention", place + f, y[place + f], expected[f], 6e-6);
      }
  }
}

inline void attention(const Isa& isa, Report& report) {
  for (const Seen seen : {Seen::all, Seen::causal, Seen::window, Seen::padded, Seen::kept, Seen::biased, Seen::capped}) {
    for (const int64_t queries : {1, 6, 13}) attention<float>(isa, report, queries, 29, 12, seen, false);
    attention<Half>(isa, report, 7, 17, 9, seen, false);
    attention<float>(isa, report, 2, 27, 37, seen, true);
  }
  attention<float>(isa, report, 21, 21, 32, Seen::packed, false);
}

}  // namespace check
