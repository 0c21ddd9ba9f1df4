#include "row_program.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

namespace fxq {

namespace {

// What a block of rows and all that is computed of it may take, so that it and the weights' columns share an L2 cache.
constexpr int64_t kScratch = 640 << 10;
constexpr int64_t kLeastRows = 24, kMostRows = 96;  // multiples of every tile
constexpr int64_t kAlign = 64;

// Tell the processor that this thread waits.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // as long as x86's pause; `yield` takes no time on most cores
#endif
}

// Wait a little, and after many times let others run: there may be fewer processors than threads.
void pause(int times) {
  if (times < 4096) relax();
  else std::this_thread::yield();
}

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

// The first block of columns that a member of a team computes of so many; that of the next member ends its share.
int64_t first_block(int64_t columns, int member, int members) {
  return (columns + kColumns - 1) / kColumns * member / members;
}

struct Block {
  const Program& program;
  const Isa& isa;
  int64_t row, rows, capacity;
  int64_t skip;          // rows of the memory's block before the first of these
  uint8_t* scratch;      // of the values
  uint8_t* bytes;        // a quantized operand
  float* scales;         // of its rows
  int32_t* zero_points;  // of its rows

  // Whose operand `bytes` holds, quantized how: several linears may read one value.
  int quantized = -1;
  RowScheme scheme{};

  // Who of a team this is, where columns are shared.
  int member = 0, members = 1;

  uint8_t* start(int v) const {
    const Value& value = program.values[v];
    return scratch + value.offset * capacity + skip * value.stride() * (value.bytes ? 1 : sizeof(float));
  }

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

  // Quantize what a linear reads, unless it has been; says whether there was anything to do.
  bool quantize_operand(const Step& step) {
    const RowScheme& s = step.scheme;
    const bool same = quantized == step.a && s.symmetric == scheme.symmetric && s.qmin == scheme.qmin &&
                      s.qmax == scheme.qmax && s.shift == scheme.shift && s.divisor == scheme.divisor;
    if (same) return false;
    const int64_t k = program.values[step.a].width, stride = step.linear.depths * kDepth;
    isa.quantize_rows(floats(step.a), rows, k, s, bytes + skip * stride, stride, scales + skip, zero_points + skip);
    quantized = step.a;
    scheme = s;
    return true;
  }

  // The weights that this member reads of the next linear after the step that gives `out`, or null.
  const int8_t* weight_after(int out) const {
    for (size_t i = out - program.first() + 1; i < program.steps.size(); ++i) {
      const Linear& op = program.steps[i].linear;
      if (op.weight) return op.weight + first_block(op.n, member, members) * op.depths * kDepth * kColumns;
    }
    return nullptr;
  }

  // The linear of a step with the places of this block filled in.
  Linear linear_of(const Step& step, int out) const {
    Linear op = step.linear;
    op.x_stride = op.depths * kDepth;
    op.next_weight = weight_after(out);
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
    const Value& value = program.values[out];
    if (value.bytes) op.y_q = start(out);
    else if (value.half) op.y_half = value.half + row * value.width;
    else op.y = floats(out);
    return op;
  }

  // The same of a linear with float activations.
  WeightOnly weight_only_of(const Step& step, int out) const {
    WeightOnly op = step.weight;
    op.x = floats(step.a);
    op.y = floats(out);
    if (step.b >= 0) op.residual = floats(step.b);
    return op;
  }

  // This member's columns of a step that computes blocks of such.
  void run_columns(const Step& step, int out) const {
    const int64_t columns = program.values[out].width;
    const int64_t block = first_block(columns, member, members), end = first_block(columns, member + 1, members);
    if (step.kind == StepKind::weight_only) isa.weight_only(weight_only_of(step, out), 0, rows, block, end);
    else isa.linear(linear_of(step, out), 0, rows, block, end);
  }

  void copy_columns(const Step& step, int out) const {
    const int64_t width = program.values[out].width, all = program.values[step.a].width;
    const float* x = floats(step.a) + step.first;
    float* y = floats(out);
    for (int64_t r = 0; r < rows; ++r, x += all, y += width) std::memcpy(y, x, width * sizeof(float));
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
      case StepKind::activate:
        return isa.activate(step.activation, floats(step.a), rows * value.width, floats(out));
      case StepKind::columns: return copy_columns(step, out);
      case StepKind::norm: return isa.norm(step.norm, floats(step.a), rows, floats(out));
      case StepKind::quantize: return quantize(step, out);
      case StepKind::linear: quantize_operand(step); [[fallthrough]];
      case StepKind::linear_bytes:
      case StepKind::weight_only: return run_columns(step, out);
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

int64_t memory_size(const Program& program, int64_t scratch, int64_t capacity) {
  return capacity * (scratch + widest(program) + 8) + 4 * kAlign;
}

// Bytes a row of a step's result and operands in scratch memory, −1 where they differ.
int64_t common_width(const Program& program, const Step& step, int out) {
  int64_t common = 0;
  for (const int v : {out, step.a, step.b}) {
    if (v < program.first() || program.values[v].data || program.values[v].half) continue;
    const int64_t width = program.values[v].stride() * (program.values[v].bytes ? 1 : sizeof(float));
    common = common == 0 || common == width ? width : -1;
  }
  return common;
}

// Some memory as a block of up to `capacity` rows.
Block block_of(const Program& program, const Isa& isa, int64_t scratch, int64_t capacity, uint8_t* start) {
  uint8_t* bytes = start + (capacity * scratch + kAlign - 1) / kAlign * kAlign;
  float* scales = reinterpret_cast<float*>(bytes + (capacity * widest(program) + kAlign - 1) / kAlign * kAlign);
  return {program, isa, 0, 0, capacity, 0, start, bytes, scales, reinterpret_cast<int32_t*>(scales + capacity)};
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
    if (value.data || value.half) continue;
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
  Block block = block_of(program, isa, scratch, capacity, memory(memory_size(program, scratch, capacity)));
  for (; row < row_end; row += capacity) {
    block.row = row;
    block.rows = std::min(capacity, row_end - row);
    block.quantized = -1;
    for (size_t i = 0; i < program.steps.size(); ++i) block.run(program.steps[i], program.first() + static_cast<int>(i));
  }
}

int Team::join(int64_t places, int64_t all) {
  const int member = members_.fetch_add(1);
  taken_.fetch_add(places);
  for (int i = 0; taken_.load() < all; ++i) pause(i);
  size_ = members_.load();
  return member;
}

void Team::wait() {
  if (size_ == 1) return;
  const int phase = phase_.load();
  if (waiting_.fetch_add(1) + 1 == size_) {
    waiting_.store(0);
    phase_.store(phase + 1);
  } else {
    for (int i = 0; phase_.load() == phase; ++i) pause(i);
  }
}

uint8_t* shared_memory(const Program& program, int64_t scratch) {
  return memory(memory_size(program, scratch, program.rows));
}

void run_together(const Program& program, const Isa& isa, int64_t scratch, uint8_t* memory, Team& team, int member) {
  Block whole = block_of(program, isa, scratch, program.rows, memory), own = whole;
  const auto part = [&](int64_t count, int which) { return count * which / team.size(); };
  whole.rows = program.rows;
  whole.member = member;
  whole.members = team.size();
  own.row = own.skip = part(program.rows, member);
  own.rows = part(program.rows, member + 1) - own.row;
  bool apart = false;   // this member's last results are rows, which the others have not seen yet
  int64_t width = 0;    // of those and of what they were made from, in bytes a row; −1 where they differ
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    const int out = program.first() + static_cast<int>(i);
    if (!by_columns(step.kind)) {
      // Memory is used again: with rows of equal width a member's rows never lie where another's did.
      const int64_t next = common_width(program, step, out);
      if (apart && (next != width || next < 0)) team.wait();
      own.run(step, out);
      apart = true;
      width = next;
      continue;
    }
    if (step.kind == StepKind::linear) apart |= own.quantize_operand(step);
    if (apart) team.wait();
    apart = false;
    whole.run_columns(step, out);
    team.wait();
  }
}

}  // namespace fxq
