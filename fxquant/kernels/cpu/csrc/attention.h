// softmax(q·kᵀ·scale + mask)·v. Included inside the namespace of an instruction set, after V, Lanes and Factors.
//
// A unit is one key head of one sequence. Its live keys, scaled, are packed as the right factor of the first product
// (lanes are keys), its values as that of the second (lanes are features), so keys that padding has killed cost
// nothing. Some query rows at a time then go through both products; their scores stay in the L1 or L2 cache.
//
// Every sum runs over the live keys in their order, one multiply-add of a word each, except the sum of a row's
// exponentials, which has a partial sum for each lane. Places that count as masked add exact zeros.
#pragma once

constexpr int kQueries = V::lanes == 16 ? 8 : 6;  // rows of a tile
constexpr int64_t kPanel = 2 * V::lanes;          // columns of a tile
constexpr size_t kKept = size_t{1} << 22;         // floats of memory that a thread keeps between calls

inline int64_t words_of(int64_t count) { return (count + Factors::each - 1) / Factors::each; }
inline int64_t lanes_of(int64_t count) { return (count + V::lanes - 1) / V::lanes * V::lanes; }

// eᵈ for d ≤ 0: d·log₂e = n + r with |r| ≤ 1/2, a minimax polynomial in r, times 2ⁿ. Adding 1.5·2²³ + 127 rounds to a
// whole number and leaves the exponent of 2ⁿ in the lowest bits; that of 2⁻¹²⁷ is 0, and so is what −inf and all below
// −88 give. NaN stays.
inline V::F exponential_below(V::F d) {
  d = V::max(V::set(-88.0296919f), d);  // in this order NaN stays
  const V::F log2e = V::set(1.44269504f), magic = V::set(12582912.0f + 127.0f);
  const V::F shifted = V::fma(d, log2e, magic);
  const V::F r = V::fma(d, log2e, V::sub(magic, shifted));
  return V::mul(Factors::power(r), Lanes::exponent(shifted));
}

// What one thread keeps of the unit that it works on; Number is float or Half.
template <class Number>
struct Unit {
  int64_t sequence = -1, head = -1;
  int64_t keys;            // of the sequence
  int64_t count, padded;   // live keys; the same in whole vectors
  bool whole;              // all keys live
  const int32_t* live;     // their places
  const int32_t* places;   // of all keys and queries, where these do not lie one behind the other; or null
  const Number *q, *k, *v;  // first row of the sequence
  float* y;
  float* left;             // [kQueries][words of a query], where these are not numbers of q
  float* packed_keys;      // panels [words][32 or, at the end, 16 keys]
  float* packed_values;    // [words of the keys][features in whole vectors]
  float* scores;           // [kQueries][score_stride]
  int64_t score_stride;
};

// Σ_i left[r][i]·right[i][c] over words, handed to `done`.
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
      V::hold(b[c]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V::F a = V::set(left[r * left_stride + i]);
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) acc[r][c] = Factors::multiply(a, b[c], acc[r][c]);
    }
  }
  done(acc);
}

// Scores of a tile for the keys from `begin` on, −inf beyond those that each row sees; `top` takes the greatest of each
// row, lane by lane.
template <int kRows, class Number>
inline void score(const Attention& op, const Unit<Number>& unit, const float* left, int64_t left_stride, const int64_t* seen,
                  int64_t begin, int64_t padded, V::F* top) {
  const int64_t depth = words_of(op.features);
  const float* right = unit.packed_keys + begin * depth;
  int64_t first = begin;
  const auto finish = [&](const auto& acc) {
    constexpr int kWide = sizeof acc[0] / sizeof(V::F);
    const bool edge = first + kWide * V::lanes > seen[0];
    float* scores = unit.scores;
    const int64_t stride = unit.score_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) {
        const int64_t place = first + c * V::lanes;
        const V::F s = edge ? Lanes::keep_first(acc[r][c], seen[r] - place) : acc[r][c];
        V::store(scores + r * stride + place, s);
        top[r] = V::max(top[r], s);
      }
  };
  for (; first + kPanel <= unit.padded && first < padded; first += kPanel, right += kPanel * depth)
    product<kRows, 2>(left, left_stride, right, kPanel, depth, finish);
  if (first < padded) product<kRows, 1>(left, left_stride, right, V::lanes, depth, finish);
}

// A row of scores: those of the live keys [first, seen) count, of which `live` has the places where it is not null.
// Scores of the keys from `begin` on are there, in whole vectors.
struct Row {
  int64_t sequence, head, query;
  int64_t begin, first, seen;
  const int32_t* live;
};

// What a row reads of a mask or bias of four dimensions.
template <class Number>
inline const Number* row_of(const Number* from, const int64_t (&stride)[4], const Row& row) {
  return from ? from + row.sequence * stride[0] + row.head * stride[1] + row.query * stride[2] : nullptr;
}

// cap·tanh(s / cap), with tanh(x) = (e²ˣ − 1) / (e²ˣ + 1)
inline void cap_scores(float cap, float* scores, int64_t count) {
  const V::F most = V::set(cap), twice = V::set(2 / cap), one = V::set(1.0f), far = V::set(20.0f);  // tanh(10) is 1
  for (int64_t t = 0; t < count; t += V::lanes) {
    // In this order NaN stays; the exponential would lose it.
    const V::F s = V::min(far, V::max(V::sub(V::set(0.0f), far), V::mul(V::load(scores + t), twice)));
    const V::F e = exponential(s), capped = V::mul(most, V::div(V::sub(e, one), V::add(e, one)));
    V::store(scores + t, V::add(capped, V::mul(V::set(0.0f), s)));
  }
}

// Cap the scores of a row, add its bias and mask it; `scores` are those from row.begin on, `count` of them in whole
// vectors. Returns the greatest, lane by lane.
inline V::F mask_row(const Attention& op, const Row& row, float* scores, int64_t count) {
  const int64_t end = row.seen - row.begin;
  if (op.cap != 0) cap_scores(op.cap, scores, count);
  const float* bias = row_of(op.bias, op.bias_stride, row);
  const bool* keep = row_of(op.keep, op.keep_stride, row);
  const int64_t next = op.bias_stride[3], step = op.keep_stride[3];
  int64_t t = 0;
  if (!row.live && (!bias || next == 1) && (!keep || step == 1))
    for (; t + V::lanes <= end; t += V::lanes) {
      V::F s = V::load(scores + t);
      if (bias) s = V::add(s, V::load(bias + row.begin + t));
      V::store(scores + t, keep ? Lanes::keep_true(s, keep + row.begin + t) : s);
    }
  for (; t < end && (bias || keep); ++t) {
    const int64_t place = row.live ? row.live[row.begin + t] : row.begin + t;
    if (bias) scores[t] += bias[place * next];
    if (keep && !keep[place * step]) scores[t] = -HUGE_VALF;
  }
  std::fill(scores, scores + std::clamp<int64_t>(row.first - row.begin, 0, count), -HUGE_VALF);
  V::F top = V::set(-HUGE_VALF);
  for (t = 0; t < count; t += V::lanes) {
    const V::F s = Lanes::keep_first(V::load(scores + t), end - t);
    V::store(scores + t, s);
    top = V::max(top, s);
  }
  return top;
}

// Turn a row of scores into words of their exponentials; returns the sum of these, lane by lane.
inline V::F exponentials(float* scores, int64_t padded, float top) {
  const V::F peak = V::set(top == -HUGE_VALF ? 0.0f : top);
  V::F sum = V::set(0.0f);
  int64_t t = 0;
  for (; t + kPanel <= padded; t += kPanel) {
    const V::F a = exponential_below(V::sub(V::load(scores + t), peak));
    const V::F b = exponential_below(V::sub(V::load(scores + t + V::lanes), peak));
    sum = Factors::store(scores, t, a, b, sum);
  }
  if (t < padded) sum = Factors::store(scores, t, exponential_below(V::sub(V::load(scores + t), peak)), sum);
  return sum;
}

// How many of `count` live keys lie in front of a place.
inline int64_t live_before(int64_t place, int64_t count, const int32_t* live) {
  if (!live) return std::clamp<int64_t>(place, 0, count);
  return std::lower_bound(live, live + count, place) - live;
}

// The live keys that a query sees: those from the first of these on that are in front of the second.
inline std::pair<int64_t, int64_t> seen_by(const Attention& op, int64_t query, int64_t count, const int32_t* live) {
  if (!op.causal) return {0, count};
  const int64_t end = query + 1 + op.diagonal;
  return {op.window ? live_before(end - op.window, count, live) : 0, live_before(end, count, live)};
}

// Rows [row, row + kRows) of one head.
template <int kRows, class Number>
inline void attend_tile(const Attention& op, const Unit<Number>& unit, int64_t head, int64_t row) {
  int64_t first_seen[kRows], seen[kRows];
  V::F lanes[8];
  alignas(64) float folded[8];
  const int32_t* live = unit.whole ? unit.places : unit.live;
  for (int r = 0; r < 8; ++r) lanes[r] = V::set(-HUGE_VALF);
  for (int r = 0; r < kRows; ++r) {
    const auto range = seen_by(op, unit.places ? unit.places[row + r] : row + r, unit.count, live);
    first_seen[r] = range.first, seen[r] = range.second;
  }
  const int64_t keys = seen[kRows - 1], padded = lanes_of(keys), begin = first_seen[0] / kPanel * kPanel;
  const Number* q = unit.q + row * op.q_stride[1] + head * op.q_stride[2];
  const float* left = unit.left;
  int64_t left_stride = lanes_of(words_of(op.features));
  if constexpr (Factors::each == 1 && std::is_same_v<Number, float>) {
    left = q;
    left_stride = op.q_stride[1];
  } else {
    for (int r = 0; r < kRows; ++r)
      for (int64_t d = 0; d < op.features; d += Factors::each * V::lanes)
        V::store(unit.left + r * left_stride + d / Factors::each,
                 Factors::words(q + r * op.q_stride[1], d, op.features));
  }
  score<kRows>(op, unit, left, left_stride, seen, begin, padded, lanes);
  float* scores = unit.scores + begin;
  if (op.keep || op.bias || op.cap != 0 || op.window)
    for (int r = 0; r < kRows; ++r) {
      const Row masked{unit.sequence, head, row + r, begin, first_seen[r], seen[r], live};
      lanes[r] = mask_row(op, masked, scores + r * unit.score_stride, padded - begin);
    }
  Lanes::fold(lanes, V::max, folded);
  for (int r = 0; r < kRows; ++r) lanes[r] = exponentials(scores + r * unit.score_stride, padded - begin, folded[r]);
  Lanes::fold(lanes, V::add, folded);
  for (float& f : folded) f = f == 0 ? 0.0f : 1.0f / f;  // a row that sees nothing becomes zeros

  float* y = unit.y + row * op.y_stride + head * op.features;
  const int64_t stride = lanes_of(op.features);
  const float* values = unit.packed_values + words_of(begin) * stride;
  int64_t first = 0;
  const auto finish = [&](const auto& acc) {
    constexpr int kWide = sizeof acc[0] / sizeof(V::F);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) {
        const int64_t place = first + c * V::lanes;
        const V::F v = V::mul(acc[r][c], V::set(folded[r]));
        if (place + V::lanes <= op.features) V::store(y + r * op.y_stride + place, v);
        else Lanes::store_first(y + r * op.y_stride + place, v, op.features - place);
      }
  };
  for (; first + V::lanes < op.features; first += kPanel)
    product<kRows, 2>(scores, unit.score_stride, values + first, stride, words_of(keys - begin), finish);
  if (first < op.features)
    product<kRows, 1>(scores, unit.score_stride, values + first, stride, words_of(keys - begin), finish);
}

template <int kRows = kQueries, class Number>
inline void attend_rows(int64_t rows, const Attention& op, const Unit<Number>& unit, int64_t head, int64_t row) {
  if constexpr (kRows > 1)
    if (rows < kRows) return attend_rows<kRows - 1>(rows, op, unit, head, row);
  attend_tile<kRows>(op, unit, head, row);
}

// Live places of a sequence's keys; false where all are live.
inline bool find_live(const bool* keep, int64_t step, int64_t keys, int32_t* live, int64_t& count) {
  count = keys;
  if (!keep || (step == 1 && !std::memchr(keep, 0, keys))) return false;
  count = 0;
  for (int64_t t = 0; t < keys; ++t) {
    live[count] = static_cast<int32_t>(t);
    count += keep[t * step];
  }
  return count < keys;
}

// The row of the i-th live key.
template <class Number>
inline const Number* live_row(const Unit<Number>& unit, const Number* rows, int64_t stride, int64_t i) {
  return rows + (unit.whole ? i : unit.live[i]) * stride;
}

template <class Number>
inline void pack_keys(const Attention& op, const Unit<Number>& unit, const Number* k) {
  const V::F scale = V::set(op.scale);
  const int64_t depth = words_of(op.features);
  for (int64_t t = 0; t < unit.padded; t += V::lanes) {
    const int64_t inside = t % kPanel, width = t - inside + kPanel <= unit.padded ? kPanel : V::lanes;
    float* panel = unit.packed_keys + (t - inside) * depth + inside;
    const Number* row[V::lanes];
    for (int64_t i = 0; i < V::lanes; ++i)  // beyond the last any row will do: it is masked
      row[i] = live_row(unit, k, op.k_stride[1], std::min(t + i, unit.count - 1));
    for (int64_t d = 0; d < depth; d += V::lanes) {
      V::F r[V::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::lanes; ++i) r[i] = Factors::words(row[i], d * Factors::each, op.features, scale);
      Lanes::transpose(r);
      const int64_t wide = std::min<int64_t>(V::lanes, depth - d);
      for (int64_t i = 0; i < wide; ++i) V::store(panel + (d + i) * width, r[i]);
    }
  }
}

template <class Number>
inline void pack_values(const Attention& op, const Unit<Number>& unit, const Number* v) {
  const int64_t features = lanes_of(op.features);
  float* out = unit.packed_values;
  for (int64_t t = 0; t < unit.count; t += Factors::each, out += features) {
    const Number* row[Factors::each];
    for (int64_t i = 0; i < Factors::each; ++i)
      row[i] = t + i < unit.count ? live_row(unit, v, op.v_stride[1], t + i) : nullptr;
    for (int64_t d = 0; d < op.features; d += V::lanes) V::store(out + d, Factors::across(row, d, op.features));
  }
}

template <class Number>
inline void take_sequence(const Attention& op, Unit<Number>& unit, int64_t sequence, int32_t* live) {
  const int64_t start = op.offsets ? op.offsets[sequence] : 0, batch = op.offsets ? 0 : sequence;
  unit.sequence = sequence;
  unit.keys = op.offsets ? op.offsets[sequence + 1] - start : op.keys;
  const auto first = [&](const void* of, const int64_t* stride) {
    return static_cast<const Number*>(of) + batch * stride[0] + start * stride[1];
  };
  unit.q = first(op.q, op.q_stride);
  unit.k = first(op.k, op.k_stride);
  unit.v = first(op.v, op.v_stride);
  unit.y = op.y + (batch * op.queries + start) * op.y_stride;
  const bool* keep = op.padding ? op.padding + sequence * op.padding_stride[0] : nullptr;
  unit.whole = !find_live(keep, op.padding_stride[1], unit.keys, live, unit.count);
  unit.live = live;
  unit.places = op.places ? live : nullptr;
  for (int64_t t = 0; op.places && t < unit.keys; ++t)
    live[t] = static_cast<int32_t>(op.places[start + t] - op.places[start]);
  unit.padded = lanes_of(unit.count);
}

// Floats of memory for units of up to `keys` keys.
inline int64_t room_for(const Attention& op, int64_t keys) {
  const int64_t features = lanes_of(op.features), padded = lanes_of(keys);
  return kQueries * features + padded * words_of(op.features) + words_of(padded) * features +
         kQueries * (padded + V::lanes);
}

// Pack keys and values of a head of the sequence that `unit` is at; `room` holds what `room_for` counts.
template <class Number>
inline void take_head(const Attention& op, Unit<Number>& unit, int64_t head, float* room) {
  const int64_t features = lanes_of(op.features);
  unit.head = head;
  unit.left = room;
  unit.packed_keys = unit.left + kQueries * features;
  unit.packed_values = unit.packed_keys + unit.padded * words_of(op.features);
  unit.scores = unit.packed_values + words_of(unit.padded) * features;
  unit.score_stride = unit.padded + V::lanes;  // rows a power of two apart would share cache sets
  if (unit.count == 0) return;
  pack_keys(op, unit, unit.k + head * op.k_stride[2]);
  pack_values(op, unit, unit.v + head * op.v_stride[2]);
}

template <class Number>
inline void attention_of(const Attention& op, Tasks& tasks, int64_t part) {
  thread_local std::vector<float> memory;
  thread_local std::vector<int32_t> live;
  memory.resize(std::max<size_t>(memory.size(), room_for(op, op.keys) + 16));
  live.resize(std::max<size_t>(live.size(), op.keys + 1));
  float* room = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const int64_t group = op.heads / op.kv_heads;
  Unit<Number> unit;
  for (int64_t task; (task = tasks.take(part)) >= 0;) {
    // The last rows of a causal head see most: they come first.
    const int64_t block = op.blocks - 1 - task % op.blocks, rest = task / op.blocks, place = rest / group;
    const int64_t sequence = place / op.kv_heads, head = place % op.kv_heads;
    const int64_t queries = op.offsets ? op.offsets[sequence + 1] - op.offsets[sequence] : op.queries;
    const int64_t end = std::min(queries, (block + 1) * op.block_rows);
    if (block * op.block_rows >= end) continue;
    const bool same = sequence == unit.sequence;
    if (!same) take_sequence(op, unit, sequence, live.data());
    if (!same || head != unit.head) take_head(op, unit, head, room);
    for (int64_t row = block * op.block_rows; row < end; row += kQueries)
      attend_rows(end - row, op, unit, head * group + rest % group, row);
  }
  if (memory.size() > kKept) std::vector<float>().swap(memory);
}

void attention(const Attention& op, Tasks& tasks, int64_t part) {
  op.half ? attention_of<Half>(op, tasks, part) : attention_of<float>(op, tasks, part);
}
