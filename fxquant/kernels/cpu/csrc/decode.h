// Attention of a few queries over many keys, in float32. Included inside the namespace of an instruction set, after
// attention.h.
//
// Nothing is packed, as each key is read by the queries of one group alone: eight keys at a time are multiplied along
// their features, and values are summed up as they lie. A query's result depends on the live keys up to the last that it
// sees, on their order and on nothing else.
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

// Keys or values of a head: rows of which the live ones count, `live` has their places where it is not null.
struct Held {
  const float* rows;
  int64_t stride;
  const int32_t* live;

  const float* row(int64_t i) const { return rows + (live ? live[i] : i) * stride; }
};

// y[r][d] = factor[r]·Σ_t weights[r][t]·v[begin + t][d] over `keys`, for kRows rows.
template <int kRows>
inline void sum_values(const float* weights, int64_t weight_stride, const Held& v, int64_t begin, int64_t keys,
                       int64_t features, const float* factor, float* const* y) {
  for (int64_t d = 0; d < features; d += kAcross * V::lanes) {
    V::F sums[kRows][kAcross];
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kAcross; ++c) sums[r][c] = V::set(0.0f);
    const bool whole = features - d >= kAcross * V::lanes;
    for (int64_t t = 0; t < keys; ++t) {
      const float* row = v.row(begin + t) + d;
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

inline void sum_values(int rows, const float* weights, int64_t weight_stride, const Held& v, int64_t begin, int64_t keys,
                       int64_t features, const float* factor, float* const* y) {
  switch (rows) {
    case 1: return sum_values<1>(weights, weight_stride, v, begin, keys, features, factor, y);
    case 2: return sum_values<2>(weights, weight_stride, v, begin, keys, features, factor, y);
    case 3: return sum_values<3>(weights, weight_stride, v, begin, keys, features, factor, y);
    default: return sum_values<4>(weights, weight_stride, v, begin, keys, features, factor, y);
  }
}

// Up to kTogether rows, which share what they read: row i is query i modulo op.queries of head i over op.queries.
struct Together {
  int count;
  Row row[kTogether];
  const float* q[kTogether];
  float* y[kTogether];
  int64_t begin, end;  // the live keys that any of them sees, from a whole vector on
};

inline Together take_rows(const Attention& op, int64_t sequence, int64_t head, int64_t first, int count, int64_t live_count,
                          const int32_t* live) {
  Together rows{count, {}, {}, {}, op.keys, 0};
  for (int r = 0; r < count; ++r) {
    const int64_t h = head + (first + r) / op.queries, i = (first + r) % op.queries;
    const auto range = seen_by(op, i, live_count, live);
    rows.row[r] = {sequence, h, i, 0, range.first, range.second, live};
    rows.q[r] = static_cast<const float*>(op.q) + sequence * op.q_stride[0] + i * op.q_stride[1] + h * op.q_stride[2];
    rows.y[r] = op.y + (sequence * op.queries + i) * op.y_stride + h * op.features;
    rows.begin = std::min(rows.begin, range.first / V::lanes * V::lanes);
    rows.end = std::max(rows.end, range.second);
  }
  for (int r = 0; r < count; ++r) rows.row[r].begin = rows.begin;
  return rows;
}

// Scores of the rows become weights, those of a row `stride` behind those of the one before; factors divide by their sums.
inline void weigh(const Attention& op, const Together& rows, const Held& k, float* scores, int64_t stride, float* factor) {
  for (int64_t t = rows.begin; t < rows.end; t += 8) {
    const float* place[8];
    for (int i = 0; i < 8; ++i) place[i] = k.row(std::min(t + i, rows.end - 1));
    for (int r = 0; r < rows.count; ++r) score_eight(rows.q[r], place, op.features, scores + r * stride + t - rows.begin);
  }
  const V::F scale = V::set(op.scale);
  const int64_t padded = lanes_of(rows.end - rows.begin);
  for (int r = 0; r < rows.count; ++r, scores += stride) {
    for (int64_t t = 0; t < padded; t += V::lanes) V::store(scores + t, V::mul(V::load(scores + t), scale));
    const float top = V::greatest(mask_row(op, rows.row[r], scores, padded));
    const float sum = V::sum(exponentials(scores, padded, top));
    factor[r] = sum == 0 ? 0.0f : 1.0f / sum;  // a row that sees nothing becomes zeros
  }
}

void decode(const Attention& op, int64_t sequence, int64_t head, int64_t head_end) {
  thread_local std::vector<float> memory;
  thread_local std::vector<int32_t> places;
  const int64_t stride = lanes_of(op.keys) + 2 * V::lanes, kv = head / (op.heads / op.kv_heads);
  memory.resize(std::max<size_t>(memory.size(), kTogether * stride));
  places.resize(std::max<size_t>(places.size(), op.keys + 1));
  const bool* keep = op.padding ? op.padding + sequence * op.padding_stride[0] : nullptr;
  int64_t live_count;
  const int32_t* live = find_live(keep, op.padding_stride[1], op.keys, places.data(), live_count) ? places.data() : nullptr;
  const auto held = [&](const void* from, const int64_t (&steps)[3]) {
    return Held{static_cast<const float*>(from) + sequence * steps[0] + kv * steps[2], steps[1], live};
  };
  const Held k = held(op.k, op.k_stride), v = held(op.v, op.v_stride);
  const int64_t rows = (head_end - head) * op.queries;
  for (int64_t first = 0; first < rows; first += kTogether) {
    const int count = static_cast<int>(std::min<int64_t>(kTogether, rows - first));
    const Together some = take_rows(op, sequence, head, first, count, live_count, live);
    float factor[kTogether];
    weigh(op, some, k, memory.data(), stride, factor);
    sum_values(count, memory.data(), stride, v, some.begin, some.end - some.begin, op.features, factor, some.y);
  }
}
