#include "row_program.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace fxq {

namespace {

// What a block of rows and all that is computed of it may take, so that it and the weights' columns share an L2 cache.
constexpr int64_t kScratch = 640 << 10;
constexpr int64_t kLeastRows = 24, kMostRows = 96;  // multiples of every tile
constexpr int64_t kAlign = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Memory of this thread, at least `bytes` long, not cleared.
uint8_t* memory(int64_t bytes) {
  thread_local std::unique_ptr<uint8_t, Free> held;
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = (bytes + kAlign - 1) / kAlign * kAlign;
    held.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlign, size)));
  }
  return held.get();
}

// The widest operand that a linear quantizes, in bytes a row.
int64_t widest(const Program& program) {
  int64_t bytes = 0;
  for (const Step& step : program.steps)
    if (step.kind == StepKind::linear) bytes = std::max(bytes, step.linear.depths * kDepth);
  return bytes;
}

struct Block {
  const Program& program;
  const Isa& isa;
  int64_t row, rows, capacity;
  uint8_t* scratch;      // of the values
  uint8_t* bytes;        // a quantized operand
  float* scales;         // of its rows
  int32_t* zero_points;  // of its rows

  // Whose operand `bytes` holds, quantized how: several linears may read one value.
  int quantized = -1;
  RowScheme scheme{};

  uint8_t* start(int v) const { return scratch + program.values[v].offset * capacity; }

  float* floats(int v) const {
    const Value& value = program.values[v];
    return value.data ? value.data + row * value.width : reinterpret_cast<float*>(start(v));
  }

  // Call work(values, first row, rows) for spans of rows that follow each other in memory.
  template <class Work>
  void spans(int v, Work work) const {
    const int64_t cycle = program.values[v].cycle;
    for (int64_t r = 0; r < rows;) {
      const int64_t place = cycle ? (row + r) % cycle : row + r;
      const int64_t count = cycle ? std::min(rows - r, cycle - place) : rows - r;
      work(place, r, count);
      r += count;
    }
  }

  void quantize_operand(const Step& step) {
    const RowScheme& s = step.scheme;
    const bool same = quantized == step.a && s.symmetric == scheme.symmetric && s.qmin == scheme.qmin &&
                      s.qmax == scheme.qmax && s.shift == scheme.shift && s.divisor == scheme.divisor;
    if (same) return;
    const int64_t k = program.values[step.a].width;
    isa.quantize_rows(floats(step.a), rows, k, s, bytes, step.linear.depths * kDepth, scales, zero_points);
    quantized = step.a;
    scheme = s;
  }

  // The linear of a step with the places of this block filled in.
  Linear linear_of(const Step& step, int out) const {
    Linear op = step.linear;
    op.x_stride = op.depths * kDepth;
    if (step.kind == StepKind::linear) {
      op.x = bytes;
      op.x_scale = scales;
      op.x_zero_point = zero_points;
      op.per_row = 1;
    } else {
      op.x = start(step.a);
      op.x_scale = &step.scale;
      op.x_zero_point = &step.zero_point;
      op.per_row = 0;
    }
    if (step.b >= 0) op.residual = floats(step.b);
    if (program.values[out].bytes) op.y_q = start(out);
    else op.y = floats(out);
    return op;
  }

  void elementwise(const Step& step, int out, void (*work)(const float*, const float*, int64_t, float*)) const {
    const Value& second = program.values[step.b];
    const int64_t width = program.values[out].width;
    spans(step.b, [&](int64_t place, int64_t r, int64_t count) {
      const float* b = second.cycle ? second.data + place * width : floats(step.b);
      work(floats(step.a) + r * width, b, count * width, floats(out) + r * width);
    });
  }

  void run(const Step& step, int out) {
    const Value& value = program.values[out];
    switch (step.kind) {
      case StepKind::embedding:
        return spans(step.a, [&](int64_t place, int64_t r, int64_t count) {
          isa.embedding(step.table, step.table_scale, step.per_row, program.values[step.a].ids + place, count,
                        value.width, floats(out) + r * value.width);
        });
      case StepKind::add: return elementwise(step, out, isa.add);
      case StepKind::multiply: return elementwise(step, out, isa.multiply);
      case StepKind::norm: return isa.norm(step.norm, floats(step.a), rows, floats(out));
      case StepKind::quantize: return quantize(step, out);
      case StepKind::linear: quantize_operand(step); [[fallthrough]];
      case StepKind::linear_bytes:
        return isa.linear(linear_of(step, out), 0, rows, 0, (step.linear.n + kColumns - 1) / kColumns);
    }
  }

  void quantize(const Step& step, int out) const {
    const Value& value = program.values[out];
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* q = start(out) + r * value.stride();
      isa.quantize_all(floats(step.a) + r * value.width, value.width, step.scheme, step.scale, step.zero_point, q);
      std::fill(q + value.width, q + value.stride(), uint8_t{0});
    }
  }
};

// This thread's memory as a block of up to `capacity` rows.
Block block_of(const Program& program, const Isa& isa, int64_t scratch, int64_t capacity) {
  const int64_t wide = widest(program);
  uint8_t* start = memory(capacity * (scratch + wide + 8) + 4 * kAlign);
  uint8_t* bytes = start + (capacity * scratch + kAlign - 1) / kAlign * kAlign;
  float* scales = reinterpret_cast<float*>(bytes + (capacity * wide + kAlign - 1) / kAlign * kAlign);
  return {program, isa, 0, 0, capacity, start, bytes, scales, reinterpret_cast<int32_t*>(scales + capacity)};
}

}  // namespace

int64_t place(Program& program) {
  const int first = program.first();
  std::vector<int> last(program.values.size(), -1);
  for (int i = 0; i < static_cast<int>(program.steps.size()); ++i)
    for (const int v : {program.steps[i].a, program.steps[i].b})
      if (v >= 0) last[v] = i;
  struct Hole {
    int64_t offset, size;
    int until;
  };
  std::vector<Hole> taken;
  int64_t total = 0;
  for (int i = 0; i < static_cast<int>(program.steps.size()); ++i) {
    Value& value = program.values[first + i];
    if (value.data) continue;
    const int64_t size = (value.stride() * (value.bytes ? 1 : 4) + kAlign - 1) / kAlign * kAlign;
    std::erase_if(taken, [i](const Hole& hole) { return hole.until < i; });
    std::sort(taken.begin(), taken.end(), [](const Hole& a, const Hole& b) { return a.offset < b.offset; });
    int64_t offset = 0;
    for (const Hole& hole : taken) {
      if (offset + size <= hole.offset) break;
      offset = std::max(offset, hole.offset + hole.size);
    }
    value.offset = offset;
    taken.push_back({offset, size, last[first + i]});
    total = std::max(total, offset + size);
  }
  return total;
}

void run(const Program& program, const Isa& isa, int64_t scratch, int64_t row, int64_t row_end) {
  const int64_t fitting = kScratch / std::max<int64_t>(scratch + widest(program), 1);
  const int64_t capacity = std::clamp(fitting / kLeastRows * kLeastRows, kLeastRows, kMostRows);
  Block block = block_of(program, isa, scratch, capacity);
  for (; row < row_end; row += capacity) {
    block.row = row;
    block.rows = std::min(capacity, row_end - row);
    block.quantized = -1;
    for (size_t i = 0; i < program.steps.size(); ++i) block.run(program.steps[i], program.first() + static_cast<int>(i));
  }
}

void run_split(const Program& program, const Isa& isa, int64_t scratch, Split split) {
  Block block = block_of(program, isa, scratch, std::max<int64_t>(program.rows, 1));
  block.rows = program.rows;
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    const int out = program.first() + static_cast<int>(i);
    if (step.kind != StepKind::linear && step.kind != StepKind::linear_bytes) {
      block.run(step, out);
      continue;
    }
    if (step.kind == StepKind::linear) block.quantize_operand(step);
    struct Work {
      const Isa& isa;
      Linear op;
      int64_t rows;
    } const work{isa, block.linear_of(step, out), program.rows};
    split(program.rows * step.linear.n * step.linear.depths * kDepth, (step.linear.n + kColumns - 1) / kColumns, &work,
          [](const void* given, int64_t a, int64_t b) {
            const Work& w = *static_cast<const Work*>(given);
            w.isa.linear(w.op, 0, w.rows, a, b);
          });
  }
}

}  // namespace fxq
