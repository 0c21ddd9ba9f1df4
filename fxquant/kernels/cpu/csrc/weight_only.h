// Linears of float rows and integer weights. Included inside the namespace of an instruction set, after epilogue.h.
//
// y = activation(Σ_g S_g·(Σ_{k in g} x_k·q_k − Z_g·Σ_{k in g} x_k) + bias) + residual. For each row and column that is
// one chain of multiply-adds over the depths of a group, and one over the groups, whatever the number of rows: a row gives
// the same bits alone and in any batch.
#pragma once

// Rows as they are: a product takes one float of a row and one weight of a column.
struct FloatRows {
  using X = float;
  static constexpr int64_t each = 1;
  static V::F read(const float* x) { return V::set(*x); }
  static V::F multiply(V::F x, V::F q, V::F sum) { return V::fma(x, q, sum); }
};

// How a step of 256 bytes holds the weights of 64 columns: `depths` of each, of which a product takes `each`; get<i>
// reads those of the i-th product for V::lanes columns. `Exact` reads the same bytes as floats.
struct Bytes : FloatRows {
  using Exact = Bytes;
  static constexpr int64_t depths = 4;
  template <int i>
  static V::F get(const int8_t* step, int64_t column) {
    return V::bytes(step + i * kColumns + column);
  }
};

struct Nibbles : FloatRows {
  using Exact = Nibbles;
  static constexpr int64_t depths = 8;
  template <int i>
  static V::F get(const int8_t* step, int64_t column) {
    return V::nibbles<8 * (i % 4) + 4 * (i / 4)>(step + 4 * column);
  }
};

constexpr int64_t kStep = 4 * kColumns;  // bytes

// Ask for `bytes` from p on, which may lie beyond the end.
template <int64_t bytes>
inline void prefetch(const void* p) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// What is done with zero points: there are none; −Z·Σx is added to each sum; or Z is taken off each weight, which gives
// what torch gives where x is not finite.
enum class Zeros { none, sums, weights };

// Sums over one group, of kRows rows by kVectors vectors of columns.
template <class Codes, Zeros kZeros, int kRows, int kVectors>
struct GroupSums {
  V::F acc[kRows][kVectors], zero[kVectors];

  // x_sum: minus the sums of the group's x, one for each row.
  GroupSums(const int8_t* zero_point, const float* x_sum, int64_t stride) {
    if constexpr (kZeros != Zeros::none)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) zero[v] = V::bytes(zero_point + v * V::lanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] = kZeros == Zeros::sums ? V::mul(zero[v], V::set(x_sum[r * stride])) : V::set(0.0f);
  }

  template <int i>
  void add(const typename Codes::X* x, int64_t stride, const int8_t* step, int64_t column) {
    V::F q[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      q[v] = Codes::template get<i>(step, column + v * V::lanes);
      if constexpr (kZeros == Zeros::weights) q[v] = V::sub(q[v], zero[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const V::F a = Codes::read(x + r * stride + i * Codes::each);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Codes::multiply(a, q[v], acc[r][v]);
    }
  }

  template <int... i>
  void add_all(const typename Codes::X* x, int64_t stride, const int8_t* step, int64_t column,
               std::integer_sequence<int, i...>) {
    (add<i>(x, stride, step, column), ...);
  }
};

// Products of kRows rows with the columns of kVectors vectors in a block; `sum` [kRows][64] holds the bias before and
// the result after. Inlined into one function, the heights of tiles would share its registers, and spill.
template <class Codes, Zeros kZeros, int kRows, int kVectors>
__attribute__((noinline)) void weight_only_strip(const WeightOnly& op, const typename Codes::X* x, const float* x_sum,
                                                 const int8_t* step, int64_t scales, int64_t column, float* sum) {
  constexpr auto places = std::make_integer_sequence<int, Codes::depths / Codes::each>();
  const float* scale = op.scale + scales + column;
  const int8_t* zero_point = kZeros == Zeros::none ? nullptr : op.zero_point + scales + column;
  V::F total[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) total[r][v] = V::load(sum + r * kColumns + column + v * V::lanes);
  for (int64_t k = 0; k < op.k; scale += kColumns) {
    const int64_t end = op.k - k < op.group ? op.k : k + op.group;
    GroupSums<Codes, kZeros, kRows, kVectors> group(zero_point, x_sum, op.groups);
    // One row reads memory faster than pages are found and fetched unasked.
    if constexpr (kRows == 1) prefetch<kVectors * V::lanes * sizeof(float)>(scale + 8 * kColumns);
    for (; k < end; k += Codes::depths, step += kStep) {
      if constexpr (kRows == 1) prefetch<kStep>(step + 8 * kStep);
      group.add_all(x + k, op.k, step, column, places);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        total[r][v] = V::fma(V::load(scale + v * V::lanes), group.acc[r][v], total[r][v]);
    if constexpr (kZeros != Zeros::none) zero_point += kColumns;
    if constexpr (kZeros == Zeros::sums) ++x_sum;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) V::store(sum + r * kColumns + column + v * V::lanes, total[r][v]);
}

// Vectors of a strip: its accumulators and some more have to fit into 32 or 16 registers.
constexpr int vectors_of(int rows) { return V::lanes == 16 ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2; }

template <class Codes, Zeros kZeros, int kRows>
inline void weight_only_tile(const WeightOnly& op, int64_t rows, const typename Codes::X* x, const float* x_sum,
                             int64_t block, float* sum) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return weight_only_tile<Codes, kZeros, kRows - 1>(op, rows, x, x_sum, block, sum);
  }
  constexpr int vectors = vectors_of(kRows);
  const int64_t scales = block * op.groups * kColumns;
  for (int64_t c = 0; c < kColumns; c += vectors * V::lanes)
    weight_only_strip<Codes, kZeros, kRows, vectors>(op, x, x_sum, op.weight + block * op.block_bytes, scales, c, sum);
}

// Minus the sum of each group of a row; returns the sum of all magnitudes.
inline float group_sums(const WeightOnly& op, const float* x, float* minus_sums) {
  V::F magnitude = V::set(0.0f);
  float rest = 0;
  for (int64_t k = 0; k < op.k; ++minus_sums) {
    const int64_t end = op.k - k < op.group ? op.k : k + op.group;
    V::F partial = V::set(0.0f);
    for (; k + V::lanes <= end; k += V::lanes) {
      const V::F v = V::load(x + k), minus = V::sub(V::set(0.0f), v);
      partial = V::add(partial, minus);
      magnitude = V::add(magnitude, V::max(v, minus));
    }
    *minus_sums = V::sum(partial);
    for (; k < end; ++k) {
      *minus_sums -= x[k];
      rest += std::fabs(x[k]);
    }
  }
  return V::sum(magnitude) + rest;
}

// What the tiles read of some rows.
template <class Codes>
struct Rows {
  const typename Codes::X* x;
  std::vector<float> minus_sums;  // of each group of each row
  std::vector<char> huge;         // rows that need more than the range of float32, or are not finite
  std::vector<typename Codes::X> kept;
  std::vector<float> rounded;

  void of(const WeightOnly& op, int64_t row, int64_t row_end) {
    minus_sums.resize((row_end - row) * op.groups);
    huge.resize(row_end - row);
    if constexpr (Codes::each > 1) kept.resize((row_end - row) * op.k);
    for (int64_t r = 0; r < row_end - row; ++r) {
      const float* values = op.x + (row + r) * op.k;
      if constexpr (Codes::each > 1) values = round(op, values, kept.data() + r * op.k);
      huge[r] = !(group_sums(op, values, minus_sums.data() + r * op.groups) < 0x1p118f);
    }
    if constexpr (Codes::each > 1) {
      x = kept.data();
    } else {
      x = op.x + row * op.k;
    }
  }

  // Write a row as products take it; returns what its numbers became.
  const float* round(const WeightOnly& op, const float* values, typename Codes::X* to) {
    rounded.resize(op.k + V::lanes);
    for (int64_t k = 0; k < op.k; k += V::lanes)
      V::store(rounded.data() + k, Codes::round(values + k, op.k - k, to + k));
    return rounded.data();
  }
};

// A row of values that times integers may leave float32, or that are not finite: they are scaled down first, and zero
// points are taken off the weights, so that it comes out as torch's product with dequantized weights does.
template <class Codes, bool kZeros>
inline void weight_only_huge(const WeightOnly& op, const float* x, int64_t block, const float* bias, float* sum) {
  thread_local std::vector<float> scaled;
  scaled.assign(x, x + op.k);
  for (float& value : scaled) value *= 0x1p-40f;
  std::memset(sum, 0, kColumns * sizeof(float));
  constexpr Zeros zeros = kZeros ? Zeros::weights : Zeros::none;
  weight_only_tile<typename Codes::Exact, zeros, 1>(op, 1, scaled.data(), nullptr, block, sum);
  for (int64_t c = 0; c < kColumns; ++c) sum[c] = sum[c] * 0x1p40f + bias[c];
}

template <Activation A>
inline void weight_only_finish(const WeightOnly& op, int64_t row, int64_t rows, int64_t block, float* sum) {
  const int64_t first = block * kColumns, count = op.n - first < kColumns ? op.n - first : kColumns;
  for (int64_t r = 0; r < rows; ++r, sum += kColumns) {
    const int64_t place = (row + r) * op.n + first;
    for (int64_t c = 0; c < kColumns; c += V::lanes) V::store(sum + c, activate<A>(V::load(sum + c)));
    if (op.residual)
      for (int64_t c = 0; c < count; ++c) sum[c] += op.residual[place + c];
    std::memcpy(op.y + place, sum, count * sizeof(float));
  }
}

inline void weight_only_finish(const WeightOnly& op, int64_t row, int64_t rows, int64_t block, float* sum) {
  switch (block * kColumns < op.activated ? op.activation : Activation::none) {
    case Activation::none: return weight_only_finish<Activation::none>(op, row, rows, block, sum);
    case Activation::relu: return weight_only_finish<Activation::relu>(op, row, rows, block, sum);
    case Activation::gelu: return weight_only_finish<Activation::gelu>(op, row, rows, block, sum);
    case Activation::gelu_tanh: return weight_only_finish<Activation::gelu_tanh>(op, row, rows, block, sum);
    case Activation::silu: return weight_only_finish<Activation::silu>(op, row, rows, block, sum);
    case Activation::add_relu: break;  // no binding gives it here
  }
}

template <class Codes, bool kZeros, int kRows>
inline void weight_only_as(const WeightOnly& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  constexpr Zeros zeros = kZeros ? Zeros::sums : Zeros::none;
  thread_local Rows<Codes> given;
  given.of(op, row, row_end);
  alignas(64) float sum[kRows * kColumns], bias[kColumns];
  const int64_t tiles = (row_end - row + kRows - 1) / kRows;
  for (int64_t b = block; b < block_end; ++b) {
    for (int64_t c = 0; c < kColumns; ++c)
      bias[c] = op.bias && b * kColumns + c < op.n ? op.bias[b * kColumns + c] : 0.0f;
    for (int64_t t = 0; t < tiles; ++t) {  // of nearly equal height, as weights are unpacked once a tile
      const int64_t first = row + (row_end - row) * t / tiles, rows = row + (row_end - row) * (t + 1) / tiles - first;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(sum + r * kColumns, bias, sizeof bias);
      const int64_t begin = first - row;
      weight_only_tile<Codes, zeros, kRows>(op, rows, given.x + begin * op.k, given.minus_sums.data() + begin * op.groups,
                                            b, sum);
      for (int64_t r = 0; r < rows; ++r)
        if (given.huge[begin + r])
          weight_only_huge<Codes, kZeros>(op, op.x + (first + r) * op.k, b, bias, sum + r * kColumns);
      weight_only_finish(op, first, rows, b, sum);
    }
  }
}

// Rows [row, row_end) of the columns of blocks [block, block_end), by tiles of up to kRows rows.
template <int kRows, class OfBytes = Bytes, class OfNibbles = Nibbles>
inline void weight_only_with(const WeightOnly& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  const bool zeros = op.zero_point != nullptr;
  if (op.bits == 4) {
    return zeros ? weight_only_as<OfNibbles, true, kRows>(op, row, row_end, block, block_end)
                 : weight_only_as<OfNibbles, false, kRows>(op, row, row_end, block, block_end);
  }
  return zeros ? weight_only_as<OfBytes, true, kRows>(op, row, row_end, block, block_end)
               : weight_only_as<OfBytes, false, kRows>(op, row, row_end, block, block_end);
}
