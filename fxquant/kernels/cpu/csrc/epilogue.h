// What follows the accumulators of a tile. Included inside the namespace of an instruction set, after V.
#pragma once

// eˣ to about 1 ulp: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a Taylor polynomial of degree 7 in r, times 2ⁿ.
inline V::F exponential(V::F x) {
  x = V::min(V::max(x, V::set(-87.0f)), V::set(88.0f));
  const V::I n = V::round(V::mul(x, V::set(1.44269504f)));
  const V::F k = V::to_float(n);
  V::F r = V::fma(k, V::set(-0.693359375f), x);
  r = V::fma(k, V::set(2.12194440e-4f), r);
  V::F p = V::set(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = V::fma(p, r, V::set(c));
  return V::mul(p, V::power_of_two(n));
}

// x·sigmoid(t)
inline V::F gated(V::F x, V::F t) {
  return V::div(x, V::add(V::set(1.0f), exponential(V::sub(V::set(0.0f), t))));
}

// x/2·(1 + erf(x/√2)) = max(x, 0) − a·Φ(−a), a = |x|, from the table of cubic pieces (gelu_table.h). Adding 1.5·2²³
// rounds to a whole number, whose low bits are the piece.
inline V::F gelu(V::F x) {
  const V::F scale = V::set(kGeluPieces), magic = V::set(12582912.0f);
  const V::F a = V::min(V::absolute(x), V::set(31 / kGeluPieces));
  const V::F shifted = V::fma(a, scale, magic);
  const V::F t = V::fma(a, scale, V::sub(magic, shifted));
  const V::I piece = V::bits(shifted);
  V::F p = V::look_up(kGelu[0], piece);
  for (int i = 1; i < 4; ++i) p = V::fma(p, t, V::look_up(kGelu[i], piece));
  return V::sub(V::max(V::set(0.0f), x), p);  // in this order NaN stays
}

template <Activation A>
inline V::F activate(V::F x) {
  if constexpr (A == Activation::relu) return V::max(V::set(0.0f), x);  // in this order NaN stays
  if constexpr (A == Activation::gelu) return gelu(x);
  if constexpr (A == Activation::silu) return gated(x, x);
  if constexpr (A == Activation::gelu_tanh) {  // x/2·(1 + tanh(t)) = x·sigmoid(2t), t = √(2/π)·(x + 0.044715·x³)
    const V::F inner = V::fma(V::mul(V::mul(x, x), V::set(0.044715f)), x, x);
    return gated(x, V::mul(inner, V::set(1.5957691216f)));
  }
  return x;
}

// A sum of weights as two s16, sum = 128·high + low, so that one instruction multiplies it exactly with a zero point Z
// that is given as (Z, 128·Z). It holds for −2²² ≤ sum < 2²², which is for up to kDeepest features.
inline int32_t halves(int32_t sum) { return static_cast<int32_t>(static_cast<uint32_t>(sum >> 7) << 16 | (sum & 127)); }
inline V::I minus_halves(int32_t zero_point) {
  return V::seti(static_cast<int32_t>(static_cast<uint32_t>(-zero_point * 128) << 16 | (-zero_point & 0xffff)));
}

// The constants of one block of columns, padded to 64.
struct Columns {
  alignas(64) float scale[kColumns];
  alignas(64) float bias[kColumns];
  alignas(64) int32_t sum[kColumns];  // as halves
  int64_t first, count;

  Columns(const Linear& op, int64_t block) : first(block * kColumns) {
    count = op.n - first < kColumns ? op.n - first : kColumns;
    for (int64_t c = 0; c < kColumns; ++c) {
      const bool inside = c < count;
      scale[c] = inside ? op.weight_scale[(first + c) * op.per_column] : 0.0f;
      bias[c] = inside && op.bias ? op.bias[first + c] : 0.0f;
      sum[c] = inside ? halves(op.weight_sum[first + c]) : 0;
    }
  }
};

inline void store_quantized(const Linear& op, const float* y, uint8_t* q) {
  const V::F s = V::set(op.out_scale);
  const V::F least = V::set(static_cast<float>(op.out_qmin - op.out_zero_point));
  const V::F greatest = V::set(static_cast<float>(op.out_qmax - op.out_zero_point));
  for (int64_t c = 0; c < kColumns; c += V::lanes) {
    const V::F v = V::min(V::max(V::div(V::load(y + c), s), least), greatest);
    V::store_bytes(q + c, V::addi(V::round(v), V::seti(op.out_zero_point)));
  }
}

// Sixteen or eight columns of a tile: y = activation(fma(acc − Z·Σw, sx·sw, bias)) + residual, all rows of a column
// together, as its constants are then loaded once. Where the tile took kLess off the activations, Z is as much less.
template <Activation A, int32_t kLess>
inline void finish_columns(const Linear& op, const Columns& columns, int64_t c, int64_t row, int64_t rows,
                           const int32_t* acc, const float* residual, int64_t residual_stride, float* y,
                           int64_t y_stride) {
  const V::I sum = V::loadi(columns.sum + c);
  const V::F scale = V::load(columns.scale + c), bias = V::load(columns.bias + c);
  for (int64_t r = 0; r < rows; ++r) {
    const V::I zero_point = minus_halves(op.x_zero_point[(row + r) * op.per_row] - kLess);
    const V::F value = V::to_float(V::dot(V::loadi(acc + r * kColumns + c), zero_point, sum));
    V::F v = activate<A>(V::fma(value, V::mul(V::set(op.x_scale[(row + r) * op.per_row]), scale), bias));
    if (residual) v = V::add(v, V::load(residual + r * residual_stride + c));
    if constexpr (A == Activation::add_relu) v = activate<Activation::relu>(v);
    V::store(y + r * y_stride + c, v);
  }
}

inline void store_halves(const float* y, Half* half) {
  for (int64_t c = 0; c < kColumns; c += V::lanes) V::store_half(half + c, V::load(y + c));
}

// The rows of a tile. Where the block has fewer than 64 columns, or the result is not float32, they pass through a buffer.
template <Activation A, int64_t kRows, int32_t kLess>
inline void finish_as(const Linear& op, const Columns& columns, int64_t row, int64_t rows, const int32_t* acc) {
  const int64_t pitch = op.pitch(), place = row * pitch + columns.first;
  const bool whole = columns.count == kColumns, direct = whole && op.y;
  alignas(64) float local[kRows * kColumns];
  float* y = direct ? op.y + place : local;
  const int64_t stride = direct ? pitch : kColumns;
  const float* residual = op.residual ? op.residual + place : nullptr;
  if (residual && !whole) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(local + r * kColumns, residual + r * pitch, columns.count * sizeof(float));
    residual = local;
  }
  for (int64_t c = 0; c < kColumns; c += V::lanes)
    finish_columns<A, kLess>(op, columns, c, row, rows, acc, residual, whole ? pitch : kColumns, y, stride);
  if (op.y && !whole)
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(op.y + place + r * pitch, local + r * kColumns, columns.count * sizeof(float));
  for (int64_t r = 0; op.y_half && r < rows; ++r) {
    alignas(64) Half halves[kColumns];
    Half* to = op.y_half + place + r * pitch;
    store_halves(y + r * stride, whole ? to : halves);
    if (!whole) std::memcpy(to, halves, columns.count * sizeof(Half));
  }
  for (int64_t r = 0; op.y_q && r < rows; ++r) {
    alignas(64) uint8_t bytes[kColumns];
    store_quantized(op, y + r * stride, bytes);
    std::memcpy(op.y_q + place + r * pitch, bytes, columns.count);
  }
}

template <int64_t kRows, int32_t kLess>
inline void finish(const Linear& op, const Columns& columns, int64_t row, int64_t rows, const int32_t* acc) {
  switch (op.activation) {
    case Activation::none: return finish_as<Activation::none, kRows, kLess>(op, columns, row, rows, acc);
    case Activation::relu: return finish_as<Activation::relu, kRows, kLess>(op, columns, row, rows, acc);
    case Activation::gelu: return finish_as<Activation::gelu, kRows, kLess>(op, columns, row, rows, acc);
    case Activation::gelu_tanh: return finish_as<Activation::gelu_tanh, kRows, kLess>(op, columns, row, rows, acc);
    case Activation::silu: return finish_as<Activation::silu, kRows, kLess>(op, columns, row, rows, acc);
    case Activation::add_relu: return finish_as<Activation::add_relu, kRows, kLess>(op, columns, row, rows, acc);
  }
}

// What a tile asks of memory while it computes: weights that are wanted soon, some cache lines for each depth.
struct Ahead {
  const int8_t* from;
  int64_t lines;

  // What strip i of the tile asks for, a line for each depth; null where that is nothing.
  const int8_t* part(int64_t i, int64_t depths) const { return i < lines ? from + i * depths * 64 : nullptr; }
};

// Rows by blocks of columns; `tile` gives the int32 products of some rows, less kLess, with one packed block. The tiles
// of a block fetch the next one among them: few rows compute no longer than that takes, so that neither should wait for the other.
template <int64_t kRows, int32_t kLess = 0, class Tile>
inline void linear_with(Tile tile, const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  alignas(64) int32_t acc[kRows * kColumns];
  if (row >= row_end) return;
  const int64_t bytes = op.depths * kDepth * kColumns, tiles = (row_end - row + kRows - 1) / kRows;
  const int64_t lines = (4 + tiles - 1) / tiles;  // a depth of a block has four
  for (int64_t b = block; b < block_end; ++b) {
    const Columns columns(op, b);
    const int8_t *weight = op.weight + b * bytes, *next = b + 1 < block_end ? weight + bytes : op.next_weight;
    for (int64_t r = row; r < row_end; r += kRows) {
      const int64_t rows = row_end - r < kRows ? row_end - r : kRows;
      const int64_t done = (r - row) / kRows * op.depths * lines * 64;
      const bool more = next && done < bytes;
      const Ahead ahead{more ? next + done : nullptr, more ? lines : 0};
      tile(rows, op.x + r * op.x_stride, op.x_stride, weight, op.depths, acc, ahead);
      finish<kRows, kLess>(op, columns, r, rows, acc);
    }
  }
}
