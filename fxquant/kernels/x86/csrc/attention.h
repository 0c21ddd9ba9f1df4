// softmax(q·kᵀ·scale + mask)·v in float32. Included inside the namespace of an instruction set, after V and Lanes.
//
// A unit is one key head of one sequence. Its live keys, scaled, are packed as the right factor of the first product
// (lanes are keys), its values as that of the second (lanes are features), so keys that padding has killed cost
// nothing. Some query rows at a time then go through both products; their scores stay in the L1 or L2 cache.
//
// Every sum runs over the live keys in their order, one fused multiply-add each, except the sum of a row's
// exponentials, which has a partial sum for each lane. Places that count as masked add exact zeros.
#pragma once

constexpr int kQueries = V::lanes == 16 ? 8 : 6;  // rows of a tile
constexpr int64_t kPanel = 2 * V::lanes;          // columns of a tile

// 2ᵈ·log₂e = eᵈ for d ≤ 0, to 2e-7 of it: d·log₂e = n + r with |r| ≤ 1/2, a minimax polynomial of degree 5 in r, times
// 2ⁿ. Adding 1.5·2²³ rounds to a whole number. NaN stays, −inf and all below −88 become 0.
inline V::F exponential_below(V::F d) {
  d = V::max(V::set(-200.0f), d);  // in this order NaN stays
  const V::F log2e = V::set(1.44269504f), magic = V::set(12582912.0f);
  const V::F shifted = V::fma(d, log2e, magic);
  const V::F n = V::sub(shifted, magic);
  const V::F r = V::fma(d, log2e, V::sub(V::set(0.0f), n));
  V::F p = V::set(0.001326472731307149f);
  for (const float c : {0.009671512991189957f, 0.05550733581185341f, 0.24022242426872253f, 0.6931470036506653f, 1.0f})
    p = V::fma(p, r, V::set(c));
  return Lanes::scale_by_power(p, n, shifted);
}

// What one thread keeps of the unit that it works on.
struct Unit {
  int64_t sequence = -1, head = -1;
  int64_t keys;                    // of the sequence
  int64_t count, padded;           // live keys; the same rounded up to whole vectors
  const float *q, *k, *v;          // first row of the sequence
  const bool* keep;                // key padding of the sequence, or null
  float* y;
  bool whole;                      // all keys live
  const int32_t* live;             // their places
  const float* keys_packed;        // panels [features][32 or, at the end, 16 keys]
  const float* values;             // [count][value_stride]
  int64_t value_stride;
  float* scores;                   // [kQueries][score_stride]
  int64_t score_stride;
};

// acc[r][c] = Σ_i left[r][i]·right[i][c], for `done`.
template <int kRows, int kWide, class Done>
inline __attribute__((always_inline)) void product(const float* left, int64_t left_stride, const float* right,
                                                   int64_t right_stride, int64_t depth, const Done& done) {
  V::F acc[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < kWide; ++c) acc[r][c] = V::set(0.0f);
  for (int64_t i = 0; i < depth; ++i) {
    V::F b[kWide];
#pragma GCC unroll 2
    for (int c = 0; c < kWide; ++c) {
      b[c] = V::load(right + i * right_stride + c * V::lanes);
      asm("" : "+v"(b[c]));  // left alone the compiler loads it again for each row
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V::F a = V::set(left[r * left_stride + i]);
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
  }
  done(acc);
}

// Scores of a tile, masked beyond the keys that each row sees; returns the greatest of each row, lane by lane.
template <int kRows>
inline void score(const Attention& op, const Unit& unit, const float* q, const int64_t* seen, int64_t padded,
                  V::F* top) {
  const float* right = unit.keys_packed;
  int64_t first = 0;
  const auto finish = [&](const auto& acc) {
    constexpr int kWide = sizeof acc[0] / sizeof(V::F);
    const bool edge = first + kWide * V::lanes > seen[0];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) {
        const int64_t place = first + c * V::lanes;
        const V::F s = edge ? Lanes::keep_first(acc[r][c], seen[r] - place) : acc[r][c];
        V::store(unit.scores + r * unit.score_stride + place, s);
        top[r] = V::max(top[r], s);
      }
  };
  for (; first + kPanel <= unit.padded && first < padded; first += kPanel, right += kPanel * op.features)
    product<kRows, 2>(q, op.q_stride[1], right, kPanel, op.features, finish);
  if (first < padded) product<kRows, 1>(q, op.q_stride[1], right, V::lanes, op.features, finish);
}

// Apply the mask of four dimensions to one row; returns its greatest score, lane by lane.
inline V::F mask_row(const Attention& op, int64_t place, float* scores, int64_t keys, int64_t padded) {
  const int64_t step = op.mask_stride[3];
  int64_t t = 0;
  if (step == 1)
    for (; t + V::lanes <= keys; t += V::lanes) {
      const V::F s = V::load(scores + t);
      V::store(scores + t, op.bias ? V::add(s, V::load(op.bias + place + t)) : Lanes::keep_true(s, op.keep + place + t));
    }
  for (; t < keys; ++t) {
    if (op.bias) scores[t] += op.bias[place + t * step];
    else if (!op.keep[place + t * step]) scores[t] = -HUGE_VALF;
  }
  V::F top = V::set(-HUGE_VALF);
  for (t = 0; t < padded; t += V::lanes) top = V::max(top, V::load(scores + t));
  return top;
}

// Turn a row of scores into exponentials; returns what they have to be multiplied with to sum to one.
inline float exponentials(float* scores, int64_t padded, V::F top) {
  const float greatest = V::greatest(top);
  const V::F peak = V::set(greatest == -HUGE_VALF ? 0.0f : greatest);
  V::F sum = V::set(0.0f), other = sum;
  int64_t t = 0;
  for (; t + kPanel <= padded; t += kPanel) {
    const V::F a = exponential_below(V::sub(V::load(scores + t), peak));
    const V::F b = exponential_below(V::sub(V::load(scores + t + V::lanes), peak));
    V::store(scores + t, a);
    V::store(scores + t + V::lanes, b);
    sum = V::add(sum, a);
    other = V::add(other, b);
  }
  if (t < padded) {
    const V::F a = exponential_below(V::sub(V::load(scores + t), peak));
    V::store(scores + t, a);
    sum = V::add(sum, a);
  }
  const float total = V::sum(V::add(sum, other));
  return total == 0 ? 0.0f : 1.0f / total;  // a row that sees nothing becomes zeros
}

// Rows [row, row + kRows) of one head.
template <int kRows>
inline void attend_tile(const Attention& op, const Unit& unit, int64_t head, int64_t row) {
  int64_t seen[kRows];
  V::F top[kRows];
  float scale[kRows];
  for (int r = 0; r < kRows; ++r) {
    top[r] = V::set(-HUGE_VALF);
    seen[r] = unit.count;
    if (op.causal) {
      const int64_t end = row + r + 1;
      seen[r] = unit.whole ? std::min(end, unit.count) : std::lower_bound(unit.live, unit.live + unit.count, end) - unit.live;
    }
  }
  const int64_t keys = seen[kRows - 1], padded = (keys + V::lanes - 1) / V::lanes * V::lanes;
  const float* q = unit.q + row * op.q_stride[1] + head * op.q_stride[2];
  score<kRows>(op, unit, q, seen, padded, top);
  for (int r = 0; r < kRows; ++r) {
    float* scores = unit.scores + r * unit.score_stride;
    if (op.keep || op.bias) {
      const int64_t place =
          unit.sequence * op.mask_stride[0] + head * op.mask_stride[1] + (row + r) * op.mask_stride[2];
      top[r] = mask_row(op, place, scores, keys, padded);
    }
    scale[r] = exponentials(scores, padded, top[r]);
  }
  float* y = unit.y + row * op.y_stride + head * op.features;
  int64_t first = 0;
  const auto finish = [&](const auto& acc) {
    constexpr int kWide = sizeof acc[0] / sizeof(V::F);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) {
        const int64_t place = first + c * V::lanes;
        const V::F v = V::mul(acc[r][c], V::set(scale[r]));
        if (place + V::lanes <= op.features) V::store(y + r * op.y_stride + place, v);
        else Lanes::store_first(y + r * op.y_stride + place, v, op.features - place);
      }
  };
  for (; first + V::lanes < op.features; first += kPanel)
    product<kRows, 2>(unit.scores, unit.score_stride, unit.values + first, unit.value_stride, keys, finish);
  if (first < op.features)
    product<kRows, 1>(unit.scores, unit.score_stride, unit.values + first, unit.value_stride, keys, finish);
}

template <int kRows = kQueries>
inline void attend_rows(int64_t rows, const Attention& op, const Unit& unit, int64_t head, int64_t row) {
  if constexpr (kRows > 1)
    if (rows < kRows) return attend_rows<kRows - 1>(rows, op, unit, head, row);
  attend_tile<kRows>(op, unit, head, row);
}

// Live places of a sequence's keys; false where all are live.
inline bool find_live(const Attention& op, const Unit& unit, int32_t* live, int64_t& count) {
  count = unit.keys;
  if (!unit.keep) return false;
  count = 0;
  for (int64_t t = 0; t < unit.keys; ++t) {
    live[count] = static_cast<int32_t>(t);
    count += unit.keep[t * op.padding_stride[1]];
  }
  return count < unit.keys;
}

inline void pack_keys(const Attention& op, const Unit& unit, const float* k, float* out) {
  const V::F scale = V::set(op.scale);
  for (int64_t t = 0; t < unit.padded; t += V::lanes) {
    const int64_t inside = t % kPanel, width = t - inside + kPanel <= unit.padded ? kPanel : V::lanes;
    float* panel = out + (t - inside) * op.features + inside;
    const float* row[V::lanes];
    for (int64_t i = 0; i < V::lanes; ++i) {
      const int64_t place = t + i < unit.count ? t + i : unit.count - 1;  // any row will do beyond: it is masked
      row[i] = k + (unit.whole ? place : unit.live[place]) * op.k_stride[1];
    }
    for (int64_t d = 0; d < op.features; d += V::lanes) {
      const int64_t wide = std::min<int64_t>(V::lanes, op.features - d);
      V::F r[V::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::lanes; ++i)
        r[i] = V::mul(wide == V::lanes ? V::load(row[i] + d) : Lanes::load_first(row[i] + d, wide), scale);
      Lanes::transpose(r);
      for (int64_t i = 0; i < wide; ++i) V::store(panel + (d + i) * width, r[i]);
    }
  }
}

inline void pack_values(const Attention& op, const Unit& unit, const float* v, float* out) {
  for (int64_t t = 0; t < unit.count; ++t, out += unit.value_stride) {
    const float* row = v + (unit.whole ? t : unit.live[t]) * op.v_stride[1];
    int64_t d = 0;
    for (; d + V::lanes <= op.features; d += V::lanes) V::store(out + d, V::load(row + d));
    if (d < op.features) V::store(out + d, Lanes::load_first(row + d, op.features - d));
  }
}

// Take up another unit: pack its keys and values. `room` holds what `attention` made for it.
inline void take_up(const Attention& op, Unit& unit, int64_t sequence, int64_t head, float* room, int32_t* live) {
  if (sequence != unit.sequence) {
    const int64_t start = op.offsets ? op.offsets[sequence] : 0, batch = op.offsets ? 0 : sequence;
    unit.keys = op.offsets ? op.offsets[sequence + 1] - start : op.keys;
    unit.q = op.q + batch * op.q_stride[0] + start * op.q_stride[1];
    unit.k = op.k + batch * op.k_stride[0] + start * op.k_stride[1];
    unit.v = op.v + batch * op.v_stride[0] + start * op.v_stride[1];
    unit.y = op.y + (batch * op.queries + start) * op.y_stride;
    unit.keep = op.padding ? op.padding + sequence * op.padding_stride[0] : nullptr;
    unit.whole = !find_live(op, unit, live, unit.count);
    unit.live = live;
    unit.padded = (unit.count + V::lanes - 1) / V::lanes * V::lanes;
  }
  unit.sequence = sequence;
  unit.head = head;
  const int64_t features = (op.features + V::lanes - 1) / V::lanes * V::lanes;
  float* values = room + unit.padded * op.features;
  unit.keys_packed = room;
  unit.values = values;
  unit.value_stride = features;
  unit.scores = values + unit.count * features;
  unit.score_stride = unit.padded + V::lanes;  // rows a power of two apart would share cache sets
  if (unit.count == 0) return;
  pack_keys(op, unit, unit.k + head * op.k_stride[2], room);
  pack_values(op, unit, unit.v + head * op.v_stride[2], values);
}

void attention(const Attention& op, std::atomic<int64_t>& next) {
  thread_local std::vector<float> memory;
  thread_local std::vector<int32_t> live;
  const int64_t longest = (op.keys + V::lanes - 1) / V::lanes * V::lanes;
  const int64_t features = (op.features + V::lanes - 1) / V::lanes * V::lanes;
  memory.resize(std::max<size_t>(memory.size(), longest * (2 * features + kQueries) + kQueries * V::lanes + 16));
  live.resize(std::max<size_t>(live.size(), op.keys + 1));
  float* room = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const int64_t group = op.heads / op.kv_heads;
  Unit unit;
  for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < op.tasks;) {
    // The last rows of a causal unit see most: they come first.
    const int64_t block = op.blocks - 1 - task % op.blocks, rest = task / op.blocks, place = rest / group;
    const int64_t sequence = place / op.kv_heads, head = place % op.kv_heads;
    const int64_t queries = op.offsets ? op.offsets[sequence + 1] - op.offsets[sequence] : op.queries;
    const int64_t end = std::min(queries, (block + 1) * op.block_rows);
    if (block * op.block_rows >= end) continue;
    if (sequence != unit.sequence || head != unit.head) take_up(op, unit, sequence, head, room, live.data());
    for (int64_t row = block * op.block_rows; row < end; row += kQueries)
      attend_rows(end - row, op, unit, head * group + rest % group, row);
  }
}
