// The torch ops of convolutions: images become padded bytes with their channels side by side, windows of these the rows
// of the linears' products.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

#include "binding.h"
#include "conv.h"

namespace fxq::conv_binding {

using at::IntArrayRef;
using at::Tensor;
using std::optional;
using std::string_view;

// Bytes of windows that a thread gathers at a time, so that they stay in its L2 cache.
constexpr int64_t kGathered = 1 << 18;
constexpr int64_t kMostRows = 96, kRowStep = 12;  // a multiple of every tile

// The places of an image, and how many are added in front and behind.
struct Images {
  int64_t batch, channels, size[2], padding[2];
  bool places_first;  // all channels of a place lie side by side

  int64_t places() const { return size[0] * size[1]; }
  int64_t values() const { return places() * channels; }
  bool padded() const { return padding[0] || padding[1]; }
};

// A convolution's operands but for x; the options have two axes.
struct Convolution {
  Images images;
  fxq::Geometry geometry;
  fxq::Linear op{};
  int64_t columns, per_group, blocks;  // of all groups; of a group
  bool depthwise;
  Tensor y, weight, scale, sum;
  optional<Tensor> bias, residual;
  int64_t rows, threads;
};

int64_t axis_of(IntArrayRef options, int64_t axis, int64_t missing) {
  const int64_t at = axis - (2 - static_cast<int64_t>(options.size()));
  return at < 0 ? missing : options[at];
}

// x with its channels behind its places, or as it is, whichever is contiguous; else a copy.
Tensor arranged(const Tensor& x, Images& images) {
  TORCH_CHECK(x.dim() == 3 || x.dim() == 4, "fxquant: a convolution of ", x.dim() - 2, " axes; known: 1, 2");
  const Tensor moved = x.movedim(1, -1);
  images.places_first = moved.is_contiguous();
  images.batch = x.size(0);
  images.channels = x.size(1);
  images.size[0] = x.dim() == 4 ? x.size(2) : 1;
  images.size[1] = x.size(-1);
  return images.places_first ? moved : x.contiguous();
}

fxq::Geometry geometry_of(const Images& images, IntArrayRef kernel, IntArrayRef stride, IntArrayRef dilation,
                          int64_t groups) {
  fxq::Geometry geometry{images.batch, images.channels, groups};
  for (int64_t i = 0; i < 2; ++i) {
    geometry.size[i] = images.size[i] + 2 * images.padding[i];
    geometry.kernel[i] = axis_of(kernel, i, 1);
    geometry.stride[i] = axis_of(stride, i, 1);
    geometry.dilation[i] = axis_of(dilation, i, 1);
    TORCH_CHECK(geometry.kernel[i] > 0 && geometry.stride[i] > 0 && geometry.dilation[i] > 0 && images.padding[i] >= 0,
                "fxquant: a convolution's kernel, strides and dilations are positive, its padding is not negative");
    const int64_t reach = geometry.dilation[i] * (geometry.kernel[i] - 1) + 1;
    TORCH_CHECK(geometry.size[i] >= reach, "fxquant: a kernel that reaches over ", reach, " places, of ",
                geometry.size[i], " with padding");
    geometry.result[i] = (geometry.size[i] - reach) / geometry.stride[i] + 1;
  }
  return geometry;
}

void check_weight(const Convolution& conv, const Tensor& packed, const Tensor& weight_scale) {
  const fxq::Geometry& of = conv.geometry;
  TORCH_CHECK(of.groups > 0 && of.channels % of.groups == 0 && conv.columns % of.groups == 0, "fxquant: ", of.channels,
              " channels and ", conv.columns, " results do not fall into ", of.groups, " groups");
  TORCH_CHECK(weight_scale.numel() == 1 || weight_scale.numel() == conv.columns,
              "fxquant: the weight's scale is neither one value nor one for each of ", conv.columns, " results");
  if (conv.depthwise) {
    TORCH_CHECK(packed.is_contiguous() && packed.scalar_type() == at::kFloat && packed.size(0) == of.taps() &&
                    of.groups == of.channels && packed.size(1) == conv.blocks * fxq::kColumns &&
                    of.taps() <= fxq::kMostTaps,
                "fxquant: the weight is not packed for ", of.channels, " channels with filters of their own");
    return;
  }
  const int64_t k = of.taps() * of.channels / of.groups;
  TORCH_CHECK(packed.size(0) == of.groups * conv.blocks, "fxquant: the weight is not packed for ", of.groups, " groups");
  fxq::check_packed(packed.narrow(0, 0, conv.blocks), k, conv.per_group);
}

Convolution convolution_of(const Images& images, const Tensor& x, const Tensor& packed, const Tensor& weight_scale,
                           const Tensor& weight_sum, const optional<Tensor>& bias, const optional<Tensor>& residual,
                           string_view activation, IntArrayRef kernel, IntArrayRef stride, IntArrayRef dilation,
                           int64_t groups, at::ScalarType dtype) {
  Convolution conv{images, geometry_of(images, kernel, stride, dilation, groups)};
  conv.columns = weight_sum.numel();
  conv.depthwise = packed.dim() == 2;
  conv.per_group = conv.depthwise ? conv.columns : conv.columns / std::max<int64_t>(groups, 1);
  conv.blocks = (conv.per_group + fxq::kColumns - 1) / fxq::kColumns;
  check_weight(conv, packed, weight_scale);
  std::vector<int64_t> shape{images.batch};
  for (int64_t i = 4 - x.dim(); i < 2; ++i) shape.push_back(conv.geometry.result[i]);
  shape.push_back(conv.columns);
  conv.y = at::empty(shape, x.options().dtype(dtype)).movedim(-1, 1);
  conv.weight = packed;
  conv.scale = weight_scale.contiguous();
  conv.sum = weight_sum.contiguous();
  conv.bias = fxq::contiguous(bias);
  TORCH_CHECK(!bias || bias->numel() == conv.columns, "fxquant: the bias is not one value for each result");
  if (residual) conv.residual = residual->to(at::kFloat).expand(conv.y.sizes()).movedim(1, -1).contiguous();
  conv.op.n = conv.per_group;
  conv.op.y_stride = conv.columns;
  conv.op.depths = conv.depthwise ? 0 : packed.size(1);
  conv.op.x_stride = conv.op.depths * fxq::kDepth;
  conv.op.per_column = weight_scale.numel() > 1;
  conv.op.activation = activation == "add_relu" ? fxq::Activation::add_relu : fxq::activation_of(activation);
  conv.rows = images.batch * conv.geometry.places();
  const int64_t macs = conv.rows * conv.columns * conv.geometry.taps() * (images.channels / groups);
  conv.threads = macs < fxq::kSerial ? 1 : at::get_num_threads();
  return conv;
}

// Images as bytes with their channels side by side and their padding around them, each with its zero point.
struct Bytes {
  std::vector<uint8_t> copy;
  const uint8_t* values;
  std::vector<float> scale;         // one, or one for each image
  std::vector<int32_t> zero_point;  // of the stored values
};

void copy_places(const uint8_t* from, const Images& images, int64_t row, uint8_t flip, uint8_t* to) {
  const int64_t width = images.size[1], channels = images.channels;
  if (images.places_first) {
    const uint8_t* line = from + row * width * channels;
    for (int64_t i = 0; i < width * channels; ++i) to[i] = line[i] ^ flip;
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const uint8_t* line = from + (c * images.size[0] + row) * width;
    for (int64_t i = 0; i < width; ++i) to[i * channels + c] = line[i] ^ flip;
  }
}

// Bring bytes into the order of windows, with padding; `flip` turns u8 into s8 and back.
void pad(const Convolution& conv, const uint8_t* from, uint8_t flip, Bytes& bytes) {
  const Images& images = conv.images;
  const fxq::Geometry& geometry = conv.geometry;
  const int64_t line = geometry.size[1] * images.channels, before = images.padding[1] * images.channels;
  std::vector<uint8_t> copy(images.batch * geometry.image() + fxq::kSlack);
  fxq::over(conv.threads, images.batch * geometry.size[0], [&](int64_t first, int64_t last) {
    for (int64_t each = first; each < last; ++each) {
      const int64_t image = each / geometry.size[0], row = each % geometry.size[0] - images.padding[0];
      uint8_t* to = copy.data() + each * line;
      const int32_t zero = bytes.zero_point[bytes.zero_point.size() > 1 ? image : 0];
      const bool inside = row >= 0 && row < images.size[0];
      std::memset(to, zero, inside ? before : line);
      if (!inside) continue;
      copy_places(from + image * images.values(), images, row, flip, to + before);
      std::memset(to + line - before, zero, before);
    }
  });
  bytes.copy = std::move(copy);
  bytes.values = bytes.copy.data();
}

// Whether images of bytes can be read as they are; `owned` ones may be read a little past their end.
bool readable(const Convolution& conv, uint8_t flip, bool owned) {
  return conv.images.places_first && !conv.images.padded() && !flip && (owned || conv.geometry.pointwise());
}

// Quantize float images, each by its own range or all by one.
Bytes quantized(const Convolution& conv, const float* x, const fxq::RowScheme& scheme, bool by_image) {
  const fxq::Isa& kernels = fxq::chosen_isa();
  const int64_t ranges = by_image ? conv.images.batch : 1, all = conv.images.batch * conv.images.values();
  const int64_t values = ranges ? all / ranges : 0, parts = ranges >= conv.threads ? 1 : conv.threads;
  std::vector<float> low(ranges * parts), high(ranges * parts);
  const auto span = [&](int64_t part) { return (part / parts) * values + values * (part % parts) / parts; };
  const auto end = [&](int64_t part) { return (part / parts) * values + values * (part % parts + 1) / parts; };
  fxq::over(conv.threads, ranges * parts, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      kernels.range(x + span(part), end(part) - span(part), low[part], high[part]);
  });
  Bytes bytes{std::vector<uint8_t>(all + fxq::kSlack), nullptr, std::vector<float>(ranges), std::vector<int32_t>(ranges)};
  for (int64_t range = 0; range < ranges; ++range) {
    float least = 0, greatest = 0;
    for (int64_t part = range * parts; part < (range + 1) * parts; ++part) {
      least = std::isnan(low[part]) ? low[part] : std::min(least, low[part]);
      greatest = std::isnan(low[part]) ? high[part] : std::max(greatest, high[part]);
      if (std::isnan(low[part])) break;
    }
    kernels.qparams(least, greatest, scheme, bytes.scale[range], bytes.zero_point[range]);
  }
  fxq::over(conv.threads, ranges * parts, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      kernels.quantize_ranged(x + span(part), end(part) - span(part), scheme, bytes.scale[part / parts],
                              bytes.zero_point[part / parts], bytes.copy.data() + span(part));
  });
  const int32_t shift = conv.depthwise ? scheme.shift - 128 : scheme.shift;
  for (int32_t& zero_point : bytes.zero_point) zero_point += shift;
  bytes.values = bytes.copy.data();
  const uint8_t flip = conv.depthwise ? 128 : 0;
  if (!readable(conv, flip, true)) {
    const std::vector<uint8_t> plain = std::move(bytes.copy);
    pad(conv, plain.data(), flip, bytes);
  }
  return bytes;
}

// The operands of some rows of a group: `scales` and `zero_points` hold those of the rows where images differ.
fxq::Linear part_of(const Convolution& conv, const Bytes& bytes, int64_t row, int64_t rows, int64_t group,
                    std::vector<float>& scales, std::vector<int32_t>& zero_points) {
  fxq::Linear part = conv.op;
  const int64_t column = group * conv.per_group, place = row * conv.columns + column;
  part.per_row = bytes.scale.size() > 1;
  for (int64_t r = 0; part.per_row && r < rows; ++r) {
    scales[r] = bytes.scale[(row + r) / conv.geometry.places()];
    zero_points[r] = bytes.zero_point[(row + r) / conv.geometry.places()];
  }
  part.x_scale = part.per_row ? scales.data() : bytes.scale.data();
  part.x_zero_point = part.per_row ? zero_points.data() : bytes.zero_point.data();
  part.weight_scale = conv.scale.const_data_ptr<float>() + (part.per_column ? column : 0);
  part.weight_sum = conv.sum.const_data_ptr<int32_t>() + column;
  part.bias = conv.bias ? conv.bias->const_data_ptr<float>() + column : nullptr;
  part.residual = conv.residual ? conv.residual->const_data_ptr<float>() + place : nullptr;
  if (part.y) part.y += place;
  if (part.y_q) part.y_q += place;
  return part;
}

// Rows [row, row + rows) of the columns of blocks [block, block_end), counted over all groups.
void multiply(const Convolution& conv, const Bytes& bytes, const std::vector<fxq::Windows>& windows, int64_t row,
              int64_t rows, int64_t block, int64_t block_end) {
  thread_local std::vector<float> scales(kMostRows);
  thread_local std::vector<int32_t> zero_points(kMostRows);
  thread_local std::vector<uint8_t> gathered;
  const int64_t packed = conv.blocks * conv.op.depths * fxq::kDepth * fxq::kColumns;
  for (int64_t group = block / conv.blocks; group * conv.blocks < block_end; ++group) {
    fxq::Linear part = part_of(conv, bytes, row, rows, group, scales, zero_points);
    part.weight = conv.weight.const_data_ptr<int8_t>() + group * packed;
    if (conv.geometry.pointwise()) {
      part.x = bytes.values + row * conv.geometry.channels;
    } else {
      gathered.resize(std::max<size_t>(gathered.size(), rows * part.x_stride + fxq::kSlack));
      windows[group].gather(bytes.values, row, rows, gathered.data(), part.x_stride);
      part.x = gathered.data();
    }
    const int64_t first = group * conv.blocks;
    fxq::chosen_isa().linear(part, 0, rows, std::max(block - first, int64_t{0}), std::min(block_end - first, conv.blocks));
  }
}

void filter(const Convolution& conv, const Bytes& bytes, const std::vector<int64_t>& offsets, int64_t row, int64_t rows) {
  thread_local std::vector<float> scales(kMostRows);
  thread_local std::vector<int32_t> zero_points(kMostRows);
  int64_t windows[kMostRows];
  for (int64_t r = 0; r < rows; ++r) windows[r] = conv.geometry.window(row + r);
  const fxq::Linear part = part_of(conv, bytes, row, rows, 0, scales, zero_points);
  const fxq::DepthwiseInput x{reinterpret_cast<const int8_t*>(bytes.values), windows, offsets.data(),
                              conv.geometry.taps()};
  fxq::chosen_isa().depthwise(part, x, conv.weight.const_data_ptr<float>(), rows);
}

void run(const Convolution& conv, const Bytes& bytes) {
  if (conv.depthwise) {
    std::vector<int64_t> offsets;
    for (int64_t tap = 0; tap < conv.geometry.taps(); ++tap) offsets.push_back(conv.geometry.offset(tap));
    fxq::over(conv.threads, conv.rows, [&](int64_t a, int64_t b) {
      for (int64_t r = a; r < b; r += kMostRows) filter(conv, bytes, offsets, r, std::min(kMostRows, b - r));
    });
    return;
  }
  std::vector<fxq::Windows> windows;
  for (int64_t group = 0; group < conv.geometry.groups; ++group) windows.emplace_back(conv.geometry, group);
  const int64_t blocks = conv.blocks * conv.geometry.groups;
  const int64_t fitting = kGathered / std::max<int64_t>(conv.op.x_stride, 1) / kRowStep * kRowStep;
  const int64_t chunk = std::clamp(fitting, kRowStep, kMostRows);
  const auto chunks = [&](int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
    for (int64_t r = row; r < row_end; r += chunk)
      multiply(conv, bytes, windows, r, std::min(chunk, row_end - r), block, block_end);
  };
  if (conv.rows >= 24 * conv.threads) {
    fxq::over(conv.threads, conv.rows, [&](int64_t a, int64_t b) { chunks(a, b, 0, blocks); });
  } else {
    fxq::over(conv.threads, blocks, [&](int64_t a, int64_t b) { chunks(0, conv.rows, a, b); });
  }
}

Tensor conv_dynamic(const Tensor& x_, const Tensor& packed, const Tensor& weight_scale, const Tensor& weight_sum,
                    const optional<Tensor>& bias, const optional<Tensor>& residual, string_view activation,
                    IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                    string_view dtype, string_view granularity, bool symmetric, string_view range) {
  TORCH_CHECK(granularity == "per-sample" || granularity == "per-tensor", "fxquant: granularity '", granularity,
              "'; known: per-sample, per-tensor");
  Images images{0, 0, {0, 0}, {axis_of(padding, 0, 0), axis_of(padding, 1, 0)}, false};
  const Tensor x = arranged(x_.to(at::kFloat), images);
  Convolution conv = convolution_of(images, x, packed, weight_scale, weight_sum, bias, residual, activation, kernel,
                                    stride, dilation, groups, at::kFloat);
  if (!conv.y.numel()) return conv.y;
  conv.op.y = static_cast<float*>(conv.y.data_ptr());
  const bool by_image = granularity == "per-sample";
  run(conv, quantized(conv, x.const_data_ptr<float>(), fxq::scheme_of(dtype, symmetric, range), by_image));
  return conv.y;
}

Tensor conv_static(const Tensor& x_, const Tensor& x_scale, const Tensor& x_zero_point, const Tensor& packed,
                   const Tensor& weight_scale, const Tensor& weight_sum, const optional<Tensor>& bias,
                   const optional<Tensor>& residual, string_view activation, IntArrayRef kernel, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, int64_t groups, const optional<Tensor>& out_scale,
                   const optional<Tensor>& out_zero_point, int64_t out_qmin, int64_t out_qmax,
                   at::ScalarType out_dtype) {
  for (const at::ScalarType each : {x_.scalar_type(), out_scale ? out_dtype : at::kByte})
    TORCH_CHECK(each == at::kChar || each == at::kByte, "fxquant: expected int8 or uint8, got ", each);
  Images images{0, 0, {0, 0}, {axis_of(padding, 0, 0), axis_of(padding, 1, 0)}, false};
  const Tensor x = arranged(x_, images);
  Convolution conv = convolution_of(images, x, packed, weight_scale, weight_sum, bias, residual, activation, kernel,
                                    stride, dilation, groups, out_scale ? out_dtype : at::kFloat);
  if (!conv.y.numel()) return conv.y;
  TORCH_CHECK(x_scale.numel() == x_zero_point.numel() && (x_scale.numel() == 1 || x_scale.numel() == images.batch),
              "fxquant: ", images.batch, " images, and ", x_scale.numel(), " scales");
  const Tensor scales = x_scale.contiguous(), zero_points = x_zero_point.contiguous();
  const bool is_signed = x.scalar_type() == at::kChar;
  const int32_t shift = (is_signed ? 128 : 0) - (conv.depthwise ? 128 : 0);
  const auto* first = scales.const_data_ptr<float>();
  Bytes bytes{{}, static_cast<const uint8_t*>(x.const_data_ptr()), {first, first + scales.numel()}, {}};
  for (int64_t i = 0; i < zero_points.numel(); ++i)
    bytes.zero_point.push_back(zero_points.const_data_ptr<int32_t>()[i] + shift);
  const uint8_t flip = is_signed != conv.depthwise ? 128 : 0;
  if (!readable(conv, flip, false)) pad(conv, bytes.values, flip, bytes);
  if (out_scale) {
    conv.op.y_q = static_cast<uint8_t*>(conv.y.data_ptr());
    conv.op.out_scale = out_scale->item<float>();
    conv.op.out_zero_point = out_zero_point->item<int32_t>();
    conv.op.out_qmin = static_cast<int32_t>(out_qmin);
    conv.op.out_qmax = static_cast<int32_t>(out_qmax);
  } else {
    conv.op.y = static_cast<float*>(conv.y.data_ptr());
  }
  run(conv, bytes);
  return conv.y;
}

// The schemas are defined in Python (packed_conv.py), where each op has an implementation that runs anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) {
  m.impl("packed_conv_dynamic_int8", conv_dynamic);
  m.impl("packed_conv_int8", conv_static);
}

}  // namespace fxq::conv_binding
