// Attention of a few queries over many keys, in float32. Included inside the namespace of an instruction set, after
// attention.h.
//
// Nothing is packed, as each key is read by the queries of one group alone: eight keys at a time are multiplied along
// their features, and values are summed up as they lie. A query's result depends on the keys that it sees, on their
// order and on nothing else.
#pragma once

constexpr int kTogether = 4;    // rows that read the values together
constexpr int64_t kAcross = 4;  // vectors of features that they sum up at a time

// Products of a row with eight keys at `row`.
inline void score_eight(const float* q, const float* const (&row)[8], int64_t features, float* scores) {
  V::F sums[8];
  for (V::F& sum : sums) sum = V::set(0.0f);
  int64_t d = 0;
  for (; d + V::lanes <= features; d += V::lanes) {
    const V::F a = V::load(q + d);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = V::fma(a, V::load(row[i] + d), sums[i]);
  }
  if (d < features) {
    const V::F a = Lanes::load_first(q + d, features - d);
    for (int i = 0; i < 8; ++i) sums[i] = V::fma(a, Lanes::load_first(row[i] + d, features - d), sums[i]);
  }
  float found[8];
  Lanes::fold(sums, V::add, found);
  std::memcpy(scores, found, sizeof found);
}

// Scale and mask the scores of the keys that a row sees, −inf beyond; returns the greatest.
inline float mask_scores(const Attention& op, int64_t sequence, int64_t head, int64_t query, float* scores, int64_t seen,
                         int64_t padded) {
  const V::F scale = V::set(op.scale);
  for (int64_t t = 0; t < padded; t += V::lanes)
    V::store(scores + t, Lanes::keep_first(V::mul(V::load(scores + t), scale), seen - t));
  if (op.padding) {
    const bool* keep = op.padding + sequence * op.padding_stride[0];
    for (int64_t t = 0; t < seen; ++t)
      if (!keep[t * op.padding_stride[1]]) scores[t] = -HUGE_VALF;
  }
  V::F top = V::set(-HUGE_VALF);
  if (op.keep || op.bias) {
    const int64_t place = sequence * op.mask_stride[0] + head * op.mask_stride[1] + query * op.mask_stride[2];
    top = mask_row(op, place, scores, seen, padded);
  } else {
    for (int64_t t = 0; t < padded; t += V::lanes) top = V::max(top, V::load(scores + t));
  }
  return V::greatest(top);
}

// y[r][d] = factor[r]·Σ_t weights[r][t]·v[t][d] over `keys`, for kRows rows.
template <int kRows>
inline void sum_values(const float* weights, int64_t weight_stride, const float* v, int64_t stride, int64_t keys,
                       int64_t features, const float* factor, float* const* y) {
  for (int64_t d = 0; d < features; d += kAcross * V::lanes) {
    V::F sums[kRows][kAcross];
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kAcross; ++c) sums[r][c] = V::set(0.0f);
    const float* row = v + d;
    const bool whole = features - d >= kAcross * V::lanes;
    for (int64_t t = 0; t < keys; ++t, row += stride) {
      V::F values[kAcross];
#pragma GCC unroll 4
      for (int c = 0; c < kAcross; ++c)
        values[c] = whole ? V::load(row + c * V::lanes) : Lanes::load_first(row + c * V::lanes, features - d - c * V::lanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V::F weight = V::set(weights[r * weight_stride + t]);
#pragma GCC unroll 4
        for (int c = 0; c < kAcross; ++c) sums[r][c] = V::fma(weight, values[c], sums[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kAcross; ++c)
        Lanes::store_first(y[r] + d + c * V::lanes, V::mul(sums[r][c], V::set(factor[r])), features - d - c * V::lanes);
  }
}

inline void sum_values(int rows, const float* weights, int64_t weight_stride, const float* v, int64_t stride,
                       int64_t keys, int64_t features, const float* factor, float* const* y) {
  switch (rows) {
    case 1: return sum_values<1>(weights, weight_stride, v, stride, keys, features, factor, y);
    case 2: return sum_values<2>(weights, weight_stride, v, stride, keys, features, factor, y);
    case 3: return sum_values<3>(weights, weight_stride, v, stride, keys, features, factor, y);
    default: return sum_values<4>(weights, weight_stride, v, stride, keys, features, factor, y);
  }
}

void decode(const Attention& op, int64_t sequence, int64_t head, int64_t head_end) {
  thread_local std::vector<float> memory;
  const int64_t stride = lanes_of(op.keys) + V::lanes, kv = head / (op.heads / op.kv_heads);
  memory.resize(std::max<size_t>(memory.size(), kTogether * stride));
  const float* k = static_cast<const float*>(op.k) + sequence * op.k_stride[0] + kv * op.k_stride[2];
  const float* v = static_cast<const float*>(op.v) + sequence * op.v_stride[0] + kv * op.v_stride[2];
  const int64_t rows = (head_end - head) * op.queries;
  for (int64_t row = 0; row < rows; row += kTogether) {
    const int count = static_cast<int>(std::min<int64_t>(kTogether, rows - row));
    float factor[kTogether];
    float* y[kTogether];
    int64_t keys = 0;
    const float* q[kTogether];
    int64_t seen[kTogether];
    for (int r = 0; r < count; ++r) {
      const int64_t h = head + (row + r) / op.queries, i = (row + r) % op.queries;
      q[r] = static_cast<const float*>(op.q) + sequence * op.q_stride[0] + i * op.q_stride[1] + h * op.q_stride[2];
      y[r] = op.y + (sequence * op.queries + i) * op.y_stride + h * op.features;
      seen[r] = op.causal ? std::clamp<int64_t>(i + 1 + op.diagonal, 0, op.keys) : op.keys;
      keys = std::max(keys, seen[r]);
    }
    for (int64_t t = 0; t < keys; t += 8) {  // the rows share what they read
      const float* place[8];
      for (int i = 0; i < 8; ++i) place[i] = k + std::min(t + i, op.keys - 1) * op.k_stride[1];
      for (int r = 0; r < count; ++r) score_eight(q[r], place, op.features, memory.data() + r * stride + t);
    }
    for (int r = 0; r < count; ++r) {
      float* scores = memory.data() + r * stride;
      const int64_t h = head + (row + r) / op.queries, i = (row + r) % op.queries, padded = lanes_of(seen[r]);
      const float top = mask_scores(op, sequence, h, i, scores, seen[r], padded);
      const float sum = V::sum(exponentials(scores, padded, top));
      factor[r] = sum == 0 ? 0.0f : 1.0f / sum;  // a row that sees nothing becomes zeros
      std::fill(scores + padded, scores + stride, 0.0f);  // for rows beside it that see more
    }
    sum_values(count, memory.data(), stride, v, op.v_stride[1], keys, op.features, factor, y);
  }
}
