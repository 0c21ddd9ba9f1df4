// A program of steps over rows that do not depend on each other, run on blocks of rows that stay in the L2 cache.
//
// Values are numbered: inputs first, then one for each step. A value that the program does not return lives in scratch
// memory of the thread, for one block of rows at a time, in a place that later values use again.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core.h"

namespace fxq {

enum class StepKind { embedding, add, multiply, activate, columns, norm, linear, linear_bytes, weight_only, quantize };

// Steps that compute whole blocks of columns, which threads share where there are few rows.
inline bool by_columns(StepKind kind) {
  return kind == StepKind::linear || kind == StepKind::linear_bytes || kind == StepKind::weight_only;
}

struct Step {
  StepKind kind;
  // Values: the operand, and the second one or the residual (−1: none). Only ids, and b of add and multiply, may have
  // fewer rows than the program.
  int a = -1, b = -1;
  Activation activation = Activation::none;  // of activate
  Linear linear{};           // of the two linears; x, y and scales are filled in for each block
  RowScheme scheme{};        // of linear and quantize
  float scale = 1;           // static: of quantize's result, of linear_bytes' operand
  int32_t zero_point = 0;    // static, not shifted
  WeightOnly weight{};       // x, y and residual are filled in for each block
  int64_t first = 0;         // of columns: the first that it takes
  Norm norm{};
  const int8_t* table = nullptr;
  const float* table_scale = nullptr;
  int64_t per_row = 0, table_rows = 0;
};

struct Value {
  int64_t width = 0;             // float values, or bytes, in a row
  bool bytes = false;            // u8, rows padded to whole depths
  int32_t shift = 0;             // 128 where the bytes are s8, moved to u8
  const int64_t* ids = nullptr;  // of an input of indices
  float* data = nullptr;         // an input or a result in memory
  Half* half = nullptr;          // a result in memory, of a linear that no other step reads; else scratch
  int64_t cycle = 0;             // rows of an input that has fewer: row r is its row r mod cycle. 0: it has all
  int64_t offset = 0;            // in scratch, in bytes a row

  int64_t stride() const { return bytes ? (width + kDepth - 1) / kDepth * kDepth : width; }
};

struct Program {
  std::vector<Value> values;
  std::vector<Step> steps;  // step i computes value values.size() − steps.size() + i
  int64_t rows = 0;

  int first() const { return static_cast<int>(values.size() - steps.size()); }
};

// Give every scratch value its place, and return the bytes that one row takes.
int64_t place(Program& program);

// Run all steps for rows [row, row_end), some rows at a time, in this thread.
void run(const Program& program, const Isa& isa, int64_t scratch, int64_t row, int64_t row_end);

// Threads that run one program together, and wait for each other between its steps.
class Team {
 public:
  // Join as one body of a parallel loop over `all` places, of which this body has `places`; returns this member's number
  // once every place is taken. All bodies must run at the same time.
  int join(int64_t places, int64_t all);
  int size() const { return size_; }
  void wait();

 private:
  std::atomic<int> members_{0}, waiting_{0}, phase_{0};
  std::atomic<int64_t> taken_{0};
  int size_ = 1;
};

// For few rows: run all steps with a team, which shares the columns of each linear. Memory is that of one member.
uint8_t* shared_memory(const Program& program, int64_t scratch);
void run_together(const Program& program, const Isa& isa, int64_t scratch, uint8_t* memory, Team& team, int member);

}  // namespace fxq
