// Numbers to compute with, the same in every run and on every machine.
#pragma once

#include <cstdint>
#include <vector>

struct Numbers {
  uint64_t state;
  explicit Numbers(uint64_t seed) : state(seed * 2654435761u + 1) {}

  // Knuth's MMIX generator; its upper bits are the good ones.
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int64_t below(int64_t count) { return static_cast<int64_t>(bits()) % count; }
  float real(float size) { return size * (static_cast<float>(bits()) / 1073741824.0f - 1.0f); }

  std::vector<float> reals(int64_t count, float size) {
    std::vector<float> found(count);
    for (float& value : found) value = real(size);
    return found;
  }
  // Integers from low to high, and the two ends about as often as all others.
  template <class T>
  std::vector<T> whole(int64_t count, int64_t low, int64_t high) {
    std::vector<T> found(count);
    for (T& value : found) {
      const int64_t any = low + below(high - low + 1), which = below(4);
      value = static_cast<T>(which == 0 ? low : which == 1 ? high : any);
    }
    return found;
  }
};
