// The arithmetic core of the x86 kernels: plain C++, no torch, one implementation per instruction set.
//
// Weights are packed in blocks of 64 columns, four depths interleaved: byte (b, d, c, i) of [N/64][K/4][64][4] holds
// weight (row 64·b + c, depth 4·d + i) of the s8 [N, K] matrix; places beyond N or K are zero.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tasks.h"

namespace fxq {

constexpr int64_t kColumns = 64;  // columns of a packed block
constexpr int64_t kDepth = 4;     // depths that one dot-product lane takes

// Features of a linear up to which all its sums fit: those of weights the two halves of epilogue.h.
constexpr int64_t kDeepest = 32767;

using Half = uint16_t;  // the bits of a bfloat16

enum class Activation { none, relu, gelu, gelu_tanh, silu, add_relu };  // add_relu, of convolutions, comes behind the residual

// How a float row becomes bytes: q = clamp(round(x / S) + Z, qmin, qmax), stored as q + shift in u8.
struct RowScheme {
  bool symmetric;
  int32_t qmin, qmax;
  int32_t middle;  // Z of a symmetric scheme
  float divisor;   // S = (high − low) / 2 / divisor, or max|x| / divisor where symmetric
  int32_t shift;   // 128 for s8, 0 for u8
};

struct Linear {
  // u8 activations [rows][stride], stride a multiple of 4, zero beyond K
  const uint8_t* x;
  int64_t x_stride;
  const float* x_scale;         // one per row, or one
  const int32_t* x_zero_point;  // of the stored u8 values
  int64_t per_row;              // 1: scales per row, 0: one for all
  // packed s8 weights
  const int8_t* weight;
  int64_t n, depths;  // columns, K/4 rounded up
  const int8_t* next_weight = nullptr;  // what is read after this linear, or null
  const float* weight_scale;
  int64_t per_column;         // 1: scales per column, 0: one for all
  const int32_t* weight_sum;  // Σ_k weight, per column
  // epilogue: activation(acc·sx·sw + bias) + residual
  const float* bias;      // or null
  const float* residual;  // [rows][n], or null
  Activation activation;
  float* y;     // [rows][n] float32, or null
  Half* y_half;  // [rows][n] bfloat16, rounded to the nearest, or null
  uint8_t* y_q;  // [rows][n] bytes: clamp(round(y / out_scale) + out_zero_point, qmin, qmax), or null
  float out_scale;
  int32_t out_zero_point, out_qmin, out_qmax;
  int64_t y_stride = 0;  // from row to row of y, y_half, y_q and residual; 0: n

  int64_t pitch() const { return y_stride ? y_stride : n; }
};

// Sums over which float32 is exact: |Σ| ≤ 128·128·taps ≤ 2²⁴.
constexpr int64_t kMostTaps = 1024;

// Bytes of images for convolutions with a filter for each channel, which are s8 here.
struct DepthwiseInput {
  const int8_t* values;
  const int64_t* windows;  // where the window of each row begins
  const int64_t* offsets;  // where each tap lies in a window
  int64_t taps;
};

// Layer normalization over rows of d values, or RMS normalization.
struct Norm {
  int64_t d;
  const float *weight, *bias;  // one value a column, or null
  float eps;
  bool rms;
};

// Float rows times weights of 8 or 4 bits: y = activation(Σ_g S_g·Σ_{k in g} x_k·(q_k − Z_g) + bias) + residual.
// 8 bits: byte (b, g, d, c) of [N/64][groups][group][64] holds weight (row 64·b + c, depth g·group + d). 4 bits: byte
// (b, g, d, c, i) of [N/64][groups][group/8][64][4] holds in its low half weight (row 64·b + c, depth g·group + 8·d + i),
// in its high half that of depth 4 more. All are signed, and zero beyond N, K or the end of a group.
struct WeightOnly {
  const float* x;  // [rows][k]; k and group are multiples of 32/bits, with zeros where there are no weights
  const int8_t* weight;
  int64_t bits, block_bytes;
  int64_t n, k;
  int64_t group, groups;     // depths of a group, the last may have fewer; and how many there are
  const float* scale;        // [N/64][groups][64]
  const int8_t* zero_point;  // the same, or null
  const float* bias;         // or null
  const float* residual;     // [rows][n], or null
  Activation activation;
  int64_t activated;  // the first so many columns, whole blocks of them, have the activation; the others none
  float* y;           // [rows][n]
};

// softmax(q·kᵀ·scale + mask)·v. Strides are in elements; the features of a head are contiguous.
struct Attention {
  const void *q, *k, *v;  // bfloat16 where `half`, else float32
  bool half;
  int64_t q_stride[3], k_stride[3], v_stride[3];  // batch, position, head
  float* y;                                       // [batch][queries][heads][features]
  int64_t y_stride;                               // of a position
  int64_t heads, kv_heads, features;
  int64_t queries, keys;   // positions of a sequence; the most that one has, where there are offsets
  const int64_t* offsets;  // where the sequences of the only batch row begin, and the end; or null
  const int64_t* places;   // where each token of that row lies in its sequence, from any start; null: one behind the other
  float scale;
  float cap;           // scores s become cap·tanh(s / cap); 0: they stay
  bool causal;         // query i sees keys up to i + diagonal
  int64_t diagonal;
  int64_t window;       // and of these the last so many places alone; 0: all
  const bool* padding;  // true: this key takes part; [batch][keys], or null
  int64_t padding_stride[2];
  const bool* keep;   // true: this score takes part; [batch][heads][queries][keys], or null
  int64_t keep_stride[4];
  const float* bias;  // added to the scores, of the same shape; or null
  int64_t bias_stride[4];
  // The work: every `block_rows` query rows of a head are a task, `blocks` tasks a head, `tasks` in all.
  int64_t block_rows, blocks, tasks;
};

// Rows of heads, normalized and turned by angles: pairs of features (d, d + rotated/2), or (2d, 2d + 1) where `interleaved`. With x the
// pair's first and x' its second, y = x·cos − x'·sin and y' = x'·cos + x·sin, each by its own feature's cos and sin;
// features from `rotated` on stay. Strides are in elements; features of a head are contiguous.
struct Rotary {
  const float* x;
  float* y;
  int64_t x_stride[3], y_stride[3];  // batch, position, head
  int64_t positions, features;
  const float *cos, *sin;  // [batch][positions][rotated]; null: nothing is turned
  int64_t cos_stride[2], sin_stride[2];
  int64_t rotated;
  bool interleaved;
  const float* norm;  // first each row goes through an RMS norm with these weights; null: it does not
  float eps;
};

struct Isa {
  const char* name;
  // Quantize float rows [rows][k] to u8 [rows][stride]; writes one scale and stored zero point a row.
  void (*quantize_rows)(const float* x, int64_t rows, int64_t k, const RowScheme& scheme, uint8_t* q, int64_t stride,
                        float* scale, int32_t* zero_point);
  // Quantize float values with one given scale and zero point (of the scheme, not shifted).
  void (*quantize_all)(const float* x, int64_t count, const RowScheme& scheme, float scale, int32_t zero_point,
                       uint8_t* q);
  // The least and the greatest of some values, zero among them; NaN where one is not finite.
  void (*range)(const float* x, int64_t count, float& low, float& high);
  // Scale and zero point (of the scheme, not shifted) of a range.
  void (*qparams)(float low, float high, const RowScheme& scheme, float& scale, int32_t& zero_point);
  // As quantize_all, for values whose own range gave scale and zero point.
  void (*quantize_ranged)(const float* x, int64_t count, const RowScheme& scheme, float scale, int32_t zero_point,
                          uint8_t* q);
  // Rows [0, rows) of a convolution with a filter for each channel; weight [taps][n rounded up to 64].
  void (*depthwise)(const Linear& op, const DepthwiseInput& x, const float* weight, int64_t rows);
  // Compute rows [row, row_end) of the columns of blocks [block, block_end).
  void (*linear)(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);
  // y[i] = scale[index[i]]·table[index[i]], rows of d bytes.
  void (*embedding)(const int8_t* table, const float* scale, int64_t per_row, const int64_t* index, int64_t count,
                    int64_t d, float* y);
  // Rows of op.d values; y may be x.
  void (*norm)(const Norm& op, const float* x, int64_t rows, float* y);
  void (*add)(const float* a, const float* b, int64_t count, float* y);
  void (*multiply)(const float* a, const float* b, int64_t count, float* y);
  void (*activate)(Activation activation, const float* x, int64_t count, float* y);
  // Compute rows [row, row_end) of the columns of blocks [block, block_end).
  void (*weight_only)(const WeightOnly& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);
  // Do tasks until none is left, those of one part first.
  void (*attention)(const Attention& op, Tasks& tasks, int64_t part);
  // All positions of a head of a sequence.
  void (*rotate)(const Rotary& op, int64_t sequence, int64_t head);
  // Attention of float32 numbers and few queries, for heads [head, head_end), which share a key head.
  void (*decode)(const Attention& op, int64_t sequence, int64_t head, int64_t head_end);
};

// Those that this CPU has, the fastest first.
std::vector<const Isa*> instruction_sets();

// The instruction set in use: the best this machine has, null if it has none, until `use` names another.
const Isa* isa();
// Switch to the instruction set of this name; false where the machine has it not.
bool use(std::string_view name);

}  // namespace fxq
