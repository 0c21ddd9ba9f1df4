#include "growing.h"

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
  int64_t capacity;             // positions
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

at::Tensor view(c10::Storage storage, const at::Tensor& past, int64_t length, int64_t capacity) {
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<float>());
  const int64_t heads = past.size(1), features = past.size(3);
  const int64_t sizes[] = {past.size(0), heads, length, features};
  const int64_t strides[] = {heads * capacity * features, capacity * features, features, 1};
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

// Whether the tensor lies in its memory as `view` lays it out, and may be followed by `more` positions, which are then
// taken.
bool take(Memory& memory, const at::Tensor& past, int64_t more) {
  const int64_t features = past.size(3), capacity = memory.capacity;
  if (past.stride(3) != 1 || past.stride(2) != features || past.stride(1) != capacity * features) return false;
  if (past.stride(0) != past.size(1) * capacity * features) return false;
  const int64_t room = capacity * features * past.size(0) * past.size(1) * static_cast<int64_t>(sizeof(float));
  if (static_cast<int64_t>(past.storage().nbytes()) != room || past.size(2) + more > capacity) return false;
  int64_t length = past.size(2);
  return memory.filled.compare_exchange_strong(length, length + more);
}

}  // namespace

at::Tensor grown(const at::Tensor& past, int64_t more) {
  const int64_t length = past.size(2) + more;
  Memory* known = memory_of(past);
  if (known && take(*known, past, more)) return view(past.storage(), past, length, known->capacity);
  const int64_t capacity = length + std::max(length / 2, kLeastRoom);
  const int64_t bytes = past.size(0) * past.size(1) * capacity * past.size(3) * static_cast<int64_t>(sizeof(float));
  auto* data = static_cast<float*>(std::aligned_alloc(kAlign, std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign)));
  if (!data) throw std::bad_alloc();
  auto* memory = new Memory{capacity, {length}, data};
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(data, memory, &release, at::kCPU), nullptr,
                       false);
  at::Tensor tensor = view(std::move(storage), past, length, capacity);
  if (past.size(2)) tensor.narrow(2, 0, past.size(2)).copy_(past);
  return tensor;
}

}  // namespace fxq
