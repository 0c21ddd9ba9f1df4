// Convolutions in which each channel has a filter of its own. Included inside the namespace of an instruction set, after
// V and the epilogue.
#pragma once

// Sums are those of float32, in which u8·s8 products of up to kMostTaps places are exact.
inline void depthwise_tile(const DepthwiseInput& x, int64_t row, int64_t rows, int64_t c, const float* weight,
                           int64_t pitch, int32_t* acc) {
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* from = x.values + x.windows[row + r] + c;
    for (int64_t i = 0; i < kColumns; i += V::lanes) {
      V::F sum = V::set(0.0f);
      for (int64_t t = 0; t < x.taps; ++t)
        sum = V::fma(V::bytes(from + x.offsets[t] + i), V::load(weight + t * pitch + i), sum);
      alignas(64) float sums[V::lanes];
      V::store(sums, sum);
      for (int64_t lane = 0; lane < V::lanes; ++lane) acc[r * kColumns + i + lane] = static_cast<int32_t>(sums[lane]);
    }
  }
}

inline void depthwise(const Linear& op, const DepthwiseInput& x, const float* weight, int64_t row_end) {
  constexpr int64_t kRows = 8;
  alignas(64) int32_t acc[kRows * kColumns];
  const int64_t blocks = (op.n + kColumns - 1) / kColumns;
  for (int64_t b = 0; b < blocks; ++b) {
    const Columns columns(op, b);
    for (int64_t r = 0; r < row_end; r += kRows) {
      const int64_t rows = row_end - r < kRows ? row_end - r : kRows;
      depthwise_tile(x, r, rows, b * kColumns, weight + b * kColumns, blocks * kColumns, acc);
      finish<kRows, 0>(op, columns, r, rows, acc);
    }
  }
}
