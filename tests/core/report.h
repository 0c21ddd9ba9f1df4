// What a check found: how much was compared, what differed, and how near the rest was to its bound.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>

struct Report {
  int64_t exact = 0, near = 0, wrong = 0;
  double worst = 0;       // the largest error, as a part of its bound
  uint32_t digest = 1;    // of the floats that have a bound, in order

  // Equal to the bit; any NaN equals any other.
  template <class T>
  void equal(const std::string& what, const T* found, const T* expected, int64_t count) {
    for (int64_t i = 0; i < count; ++i, ++exact) {
      bool same = std::memcmp(found + i, expected + i, sizeof(T)) == 0;
      if constexpr (std::is_floating_point_v<T>) same |= std::isnan(found[i]) && std::isnan(expected[i]);
      if (!same) complain(what, i, static_cast<double>(found[i]), static_cast<double>(expected[i]));
    }
  }

  // Within `bound` of a number; infinities and NaN where they are expected.
  void close(const std::string& what, int64_t place, float found, double expected, double bound) {
    ++near;
    uint32_t bits = 0;
    if (!std::isnan(found)) std::memcpy(&bits, &found, sizeof bits);
    digest = (digest ^ bits) * 16777619u + 1;  // as Fowler, Noll and Vo multiply
    if (!std::isfinite(expected)) {
      const bool same = std::isnan(expected) ? std::isnan(found) : found == expected;
      if (!same) complain(what, place, found, expected);
      return;
    }
    const double error = std::fabs(found - expected);
    if (!(error <= bound)) complain(what, place, found, expected);
    else if (bound > 0 && error / bound > worst) worst = error / bound;
  }

 private:
  void complain(const std::string& what, int64_t place, double found, double expected) {
    if (++wrong <= 8)
      std::printf("  %s, place %lld: %.9g, expected %.9g\n", what.c_str(), static_cast<long long>(place), found, expected);
  }
};
