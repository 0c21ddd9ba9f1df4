// The torch ops between a padded batch (B, S, …) and its tokens alone (1, T, …): rows are copied, nothing is computed.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "binding.h"

namespace fxq::unpad_binding {

using at::Tensor;

// Below this many bytes waking a second thread costs more than it gives.
constexpr int64_t kSerialBytes = int64_t{1} << 18;

void check_mask(const Tensor& mask) {
  TORCH_CHECK(mask.dim() == 2, "fxquant: a mask of tokens is (batch, positions), not of ", mask.dim(), " dimensions");
}

// Where the tokens are; checked, as they are read from and written to.
struct Places {
  Tensor held;
  int64_t rows, columns, count;
  const int64_t* at;

  Places(const Tensor& mask, const Tensor& index) : held(index.contiguous()) {
    check_mask(mask);
    TORCH_CHECK(index.dim() == 1 && index.scalar_type() == at::kLong,
                "fxquant: an index of tokens is one row of int64");
    rows = mask.size(0);
    columns = mask.size(1);
    count = index.numel();
    at = held.const_data_ptr<int64_t>();
    int64_t last = -1;
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(at[i] > last, "fxquant: an index of tokens rises from 0");
      last = at[i];
    }
    TORCH_CHECK(last < rows * columns, "fxquant: an index of tokens points to place ", last, " of ", rows, " by ",
                columns);
  }

  const int64_t* from(int64_t place) const { return std::lower_bound(at, at + count, place); }
};

int64_t threads_for(int64_t bytes) { return bytes < kSerialBytes ? 1 : at::get_num_threads(); }

// The shape of (…) in (batch, positions, …), after other leading axes.
std::vector<int64_t> shape_of(std::initializer_list<int64_t> leading, const Tensor& x) {
  std::vector<int64_t> shape(leading);
  shape.insert(shape.end(), x.sizes().begin() + 2, x.sizes().end());
  return shape;
}

int64_t row_bytes(const Tensor& x) {
  int64_t bytes = x.element_size();
  for (int64_t axis = 2; axis < x.dim(); ++axis) bytes *= x.size(axis);
  return bytes;
}

template <class T>
std::tuple<Tensor, Tensor> index_of(const Tensor& mask) {
  const T* live = mask.const_data_ptr<T>();
  const int64_t rows = mask.size(0), columns = mask.size(1);
  const auto options = mask.options().dtype(at::kLong);
  Tensor offsets = at::empty({rows + 1}, options);
  int64_t* begin = offsets.mutable_data_ptr<int64_t>();
  begin[0] = 0;
  for (int64_t b = 0; b < rows; ++b) {
    int64_t count = 0;
    for (int64_t s = 0; s < columns; ++s) count += live[b * columns + s] != T{0};
    begin[b + 1] = begin[b] + count;
  }
  Tensor index = at::empty({begin[rows]}, options);
  int64_t* place = index.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows * columns; ++i)
    if (live[i] != T{0}) *place++ = i;
  return {index, offsets};
}

std::tuple<Tensor, Tensor> token_index(const Tensor& mask) {
  check_mask(mask);
  if (mask.scalar_type() == at::kLong) return index_of<int64_t>(mask.contiguous());
  return index_of<bool>(mask.to(at::kBool).contiguous());
}

// Rows of bytes by sequence and position; a stride of 0 repeats.
struct Rows {
  Tensor held;
  const char* data;
  int64_t stride[2], bytes;

  Rows(const Tensor& value, const Places& places) : held(value) {
    TORCH_CHECK(value.dim() >= 2 && (value.size(0) == places.rows || value.size(0) == 1) &&
                    (value.size(1) >= places.columns || value.size(1) == 1),
                "fxquant: values of ", value.sizes(), " cannot be packed by a mask of ", places.rows, " by ",
                places.columns);
    bytes = row_bytes(value);
    int64_t expected = 1;
    for (int64_t axis = value.dim() - 1; axis >= 2; --axis) {
      if (value.stride(axis) != expected && value.size(axis) > 1) {
        held = value.contiguous();
        break;
      }
      expected *= value.size(axis);
    }
    data = static_cast<const char*>(held.const_data_ptr());
    for (int64_t axis = 0; axis < 2; ++axis)
      stride[axis] = held.size(axis) == 1 ? 0 : held.stride(axis) * held.element_size();
  }
};

std::vector<Tensor> pack_tokens(at::TensorList values, const Tensor& mask, const Tensor& index) {
  const Places places(mask, index);
  std::vector<Rows> rows;
  std::vector<Tensor> packed;
  std::vector<char*> to;
  int64_t bytes = 0;
  for (const Tensor& value : values) {
    rows.emplace_back(value, places);
    packed.push_back(at::empty(shape_of({1, places.count}, value), value.options()));
    to.push_back(static_cast<char*>(packed.back().mutable_data_ptr()));
    bytes += rows.back().bytes * places.count;
  }
  fxq::over(threads_for(bytes), places.count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = places.at[i] / places.columns, s = places.at[i] % places.columns;
      for (size_t v = 0; v < rows.size(); ++v) {
        const Rows& from = rows[v];
        std::memcpy(to[v] + i * from.bytes, from.data + b * from.stride[0] + s * from.stride[1], from.bytes);
      }
    }
  });
  return packed;
}

// Tokens (1, T, …) as rows of bytes.
Tensor tokens_of(const Tensor& x, const Places& places) {
  TORCH_CHECK(x.dim() >= 2 && x.size(0) == 1 && x.size(1) == places.count, "fxquant: packed values of ", x.sizes(),
              " are not one row of ", places.count, " tokens");
  return x.contiguous();
}

Tensor unpack_tokens(const Tensor& given, const Tensor& mask, const Tensor& index) {
  const Places places(mask, index);
  const Tensor x = tokens_of(given, places);
  Tensor padded = at::empty(shape_of({places.rows, places.columns}, x), x.options());
  const int64_t bytes = row_bytes(x), all = places.rows * places.columns;
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(padded.mutable_data_ptr());
  fxq::over(threads_for(all * bytes), all, [&](int64_t begin, int64_t end) {
    const int64_t *next = places.from(begin), *stop = places.from(end);
    for (int64_t place = begin; place < end;) {
      // A run of tokens, then one of padding.
      const int64_t* run = next;
      while (next != stop && *next == place + (next - run)) ++next;
      std::memcpy(to + place * bytes, from + (run - places.at) * bytes, (next - run) * bytes);
      place += next - run;
      const int64_t live = next != stop ? *next : end;
      std::memset(to + place * bytes, 0, (live - place) * bytes);
      place = live;
    }
  });
  return padded;
}

Tensor select_token(const Tensor& given, const Tensor& mask, const Tensor& index, int64_t place) {
  const Places places(mask, index);
  const Tensor x = tokens_of(given, places);
  TORCH_CHECK_INDEX(-places.columns <= place && place < places.columns, "fxquant: there is no token ", place,
                    " in sequences of ", places.columns);
  Tensor selected = at::empty(shape_of({places.rows}, x), x.options());
  const int64_t bytes = row_bytes(x), position = place < 0 ? place + places.columns : place;
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(selected.mutable_data_ptr());
  for (int64_t b = 0; b < places.rows; ++b, to += bytes) {
    const int64_t wanted = b * places.columns + position;
    const int64_t* found = places.from(wanted);
    const bool live = found != places.at + places.count && *found == wanted;
    if (live) std::memcpy(to, from + (found - places.at) * bytes, bytes);
    else std::memset(to, 0, bytes);
  }
  return selected;
}

// The schemas are defined in Python (unpad.py), where the ops have implementations that run anywhere.
TORCH_LIBRARY_IMPL(fxquant, CPU, m) {
  m.impl("token_index", token_index);
  m.impl("pack_tokens", pack_tokens);
  m.impl("unpack_tokens", unpack_tokens);
  m.impl("select_token", select_token);
}

}  // namespace fxq::unpad_binding
