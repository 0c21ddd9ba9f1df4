// Work that several threads share.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace fxq {

// Tasks 0 … count − 1. Each thread has a part of them, the same in every call, so that it finds in its caches what it
// computed before; when that is done it helps the others.
class Tasks {
 public:
  Tasks(int64_t count, int64_t parts) : count_(count), taken_(parts) {}

  // The next task for the thread of this part, −1 when none is left.
  int64_t take(int64_t part) {
    const int64_t parts = static_cast<int64_t>(taken_.size());
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t which = (part + i) % parts, first = count_ * which / parts;
      const int64_t task = first + taken_[which].number.fetch_add(1, std::memory_order_relaxed);
      if (task < count_ * (which + 1) / parts) return task;
    }
    return -1;
  }

 private:
  struct alignas(64) Taken {
    std::atomic<int64_t> number{0};
  };
  int64_t count_;
  std::vector<Taken> taken_;
};

}  // namespace fxq
