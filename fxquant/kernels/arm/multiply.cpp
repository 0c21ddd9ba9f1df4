// A product of integers by the core's linear, for a processor that is emulated: reads sizes, activations, weights and
// their sums from standard input and writes float32 results of scales of 1.
//
//     multiply INSTRUCTION_SET
#include <cstdio>
#include <vector>

#include "core.h"

namespace {

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<T> found(count);
  const auto got = std::fread(found.data(), sizeof(T), found.size(), stdin);
  return got == found.size() ? found : std::vector<T>();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 || !fxq::use(arguments[1])) return 2;
  const std::vector<int32_t> sizes = read<int32_t>(4);  // rows, columns, depths (K / 4 rounded up), zero point
  if (sizes.empty()) return 3;
  const int64_t rows = sizes[0], n = sizes[1], depths = sizes[2], blocks = (n + fxq::kColumns - 1) / fxq::kColumns;
  const auto x = read<uint8_t>(rows * depths * fxq::kDepth);
  const auto weight = read<int8_t>(blocks * depths * fxq::kColumns * fxq::kDepth);
  const auto sums = read<int32_t>(n);
  if (x.empty() || weight.empty() || sums.empty()) return 3;
  const float one = 1.0f;
  std::vector<float> y(rows * n);
  fxq::Linear op{};
  op.x = x.data(), op.x_stride = depths * fxq::kDepth, op.x_scale = &one, op.x_zero_point = &sizes[3];
  op.weight = weight.data(), op.n = n, op.depths = depths, op.weight_scale = &one, op.weight_sum = sums.data();
  op.activation = fxq::Activation::none;
  op.y = y.data();
  fxq::isa()->linear(op, 0, rows, 0, blocks);
  return std::fwrite(y.data(), sizeof(float), y.size(), stdout) == y.size() ? 0 : 4;
}
