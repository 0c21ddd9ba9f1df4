// Tensors (batch, heads, length, features) that grow along their length without being copied.
//
// In memory positions come first, (length, batch, heads, features), so that more of them leave the strides as they are,
// and there is room for more of them than a tensor shows. Whoever holds the longest tensor in that memory may be
// followed in place: the new positions belong to the result alone, and no tensor that anyone holds ever changes. A
// second follower of the same tensor, a shorter part of it and any other tensor are copied.
#pragma once

#include <ATen/core/Tensor.h>

namespace fxq {

// A tensor of `more` positions more than `past`, float32, that begins with what `past` holds; the rest is to be written.
at::Tensor grown(const at::Tensor& past, int64_t more);

}  // namespace fxq
