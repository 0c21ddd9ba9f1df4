// What a convolution reads and how: images as bytes, place by place with all channels of a place side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "core.h"

namespace fxq {

// Two axes; a convolution over one has a first axis of one place. Images are padded already: a window lies inside.
struct Geometry {
  int64_t batch, channels, groups;
  int64_t size[2];    // of a padded image
  int64_t kernel[2], stride[2], dilation[2];
  int64_t result[2];

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t places() const { return result[0] * result[1]; }  // of the result of an image
  int64_t image() const { return size[0] * size[1] * channels; }

  // Where the window of result `row` begins, counted over all images.
  int64_t window(int64_t row) const {
    const int64_t place = row % places();
    const int64_t y = place / result[1] * stride[0], x = place % result[1] * stride[1];
    return row / places() * image() + (y * size[1] + x) * channels;
  }
  // Where the values of a tap lie behind the begin of a window.
  int64_t offset(int64_t tap) const {
    const int64_t y = tap / kernel[1] * dilation[0], x = tap % kernel[1] * dilation[1];
    return (y * size[1] + x) * channels;
  }
  // Whether windows follow each other without gaps, so that an image is the matrix of its windows.
  bool pointwise() const { return taps() == 1 && stride[0] == 1 && stride[1] == 1 && groups == 1 && channels % kDepth == 0; }
};

// Bytes that reads and writes in steps may pass the end of an image or a row of windows by.
constexpr int64_t kSlack = 64;

// The windows of some rows of the result, of one group of channels, one behind the other in rows of `stride` bytes.
// Values that lie side by side are copied in steps of 16 bytes, which the next copy overwrites where they go too far.
class Windows {
 public:
  Windows(const Geometry& geometry, int64_t group) : geometry_(geometry) {
    const int64_t per_group = geometry.channels / geometry.groups;
    const bool whole = geometry.groups == 1 && geometry.dilation[1] == 1;
    span_ = whole ? geometry.kernel[1] * per_group : per_group;
    for (int64_t tap = 0; tap < geometry.taps(); tap += whole ? geometry.kernel[1] : 1)
      offsets_.push_back(geometry.offset(tap) + group * per_group);
  }

  void gather(const uint8_t* x, int64_t row, int64_t rows, uint8_t* to, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r, to += stride) {
      const uint8_t* from = x + geometry_.window(row + r);
      uint8_t* place = to;
      for (const int64_t offset : offsets_) {
        for (int64_t i = 0; i < span_; i += 16) __builtin_memcpy(place + i, from + offset + i, 16);
        place += span_;
      }
    }
  }

 private:
  const Geometry& geometry_;
  int64_t span_;
  std::vector<int64_t> offsets_;
};

}  // namespace fxq
