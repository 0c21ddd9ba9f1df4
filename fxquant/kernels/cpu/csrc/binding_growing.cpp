#include "binding_growing.h"

#include <ATen/ops/empty.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

namespace fxq {

namespace {

constexpr int64_t kAlign = 64, kLeastRoom = 64;

struct Memory {
  int64_t capacity, row;        // positions, and numbers in each
  std::atomic<int64_t> filled;  // of them, by the longest tensor
  float* data;
};

void release(void* memory) {
  auto* held = static_cast<Memory*>(memory);
  std::free(held->data);
  delete held;
}

Memory* memory_of(const at::Tensor& tensor) {
  if (!tensor.has_storage() || tensor.storage_offset() != 0) return nullptr;
  return tensor.storage().data_ptr().cast_context<Memory>(&release);
}

at::Tensor view(c10::Storage storage, const at::Tensor& past, int64_t length) {
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<float>());
  const int64_t batch = past.size(0), heads = past.size(1), features = past.size(3);
  const int64_t sizes[] = {batch, heads, length, features};
  const int64_t strides[] = {heads * features, features, batch * heads * features, 1};
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

// Whether the tensor lies in its memory as `view` lays it out, and may be followed by `more` positions, which are then
// taken.
bool take(Memory& memory, const at::Tensor& past, int64_t more) {
  const int64_t batch = past.size(0), heads = past.size(1), features = past.size(3);
  if (past.stride(3) != 1 || past.stride(2) != batch * heads * features) return false;
  if ((heads > 1 && past.stride(1) != features) || (batch > 1 && past.stride(0) != heads * features)) return false;
  if (memory.row != batch * heads * features || past.size(2) + more > memory.capacity) return false;
  int64_t length = past.size(2);
  return memory.filled.compare_exchange_strong(length, length + more);
}

}  // namespace

at::Tensor grown(const at::Tensor& past, int64_t more) {
  const int64_t length = past.size(2) + more;
  Memory* known = memory_of(past);
  if (known && take(*known, past, more)) return view(past.storage(), past, length);
  const int64_t capacity = length + std::max(length / 2, kLeastRoom);
  const int64_t row = past.size(0) * past.size(1) * past.size(3);
  const int64_t bytes = row * capacity * static_cast<int64_t>(sizeof(float));
  auto* data = static_cast<float*>(std::aligned_alloc(kAlign, std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign)));
  if (!data) throw std::bad_alloc();
  auto* memory = new Memory{capacity, row, {length}, data};
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(data, memory, &release, at::kCPU), nullptr,
                       false);
  at::Tensor tensor = view(std::move(storage), past, length);
  if (past.size(2)) tensor.narrow(2, 0, past.size(2)).copy_(past);
  return tensor;
}

}  // namespace fxq
