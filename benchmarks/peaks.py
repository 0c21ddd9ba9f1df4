"""What this CPU's cores can multiply at most: int8 (dpbusd) and float32 (FMA), measured by loops that touch no memory.

A product of matrices cannot come above these; a large GEMM would itself be below them. The loops are compiled at run
time with the C++ compiler that builds the kernels; without one there are no peaks, and nothing else depends on them.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# 12 independent sums: a result takes 4 to 5 cycles, two can start in each, and AVX2 has 16 registers.
SOURCE = r"""
#include <immintrin.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
#if defined(__AVX512VNNI__)
using I = __m512i; constexpr double kInt = 128; static I one() { return _mm512_set1_epi32(1); }
struct Dot { I operator()(I s, I a, I b) const { return _mm512_dpbusd_epi32(s, a, b); } };
#elif defined(__AVXVNNI__)
using I = __m256i; constexpr double kInt = 64; static I one() { return _mm256_set1_epi32(1); }
struct Dot { I operator()(I s, I a, I b) const { return _mm256_dpbusd_avx_epi32(s, a, b); } };
#elif defined(__AVX2__)
using I = __m256i; constexpr double kInt = 32; static I one() { return _mm256_set1_epi32(1); }
struct Dot { I operator()(I s, I a, I b) const { return _mm256_add_epi32(s, _mm256_madd_epi16(a, b)); } };
#endif
#if defined(__AVX512F__)
using F = __m512; constexpr double kFloat = 32; static F half() { return _mm512_set1_ps(0.5f); }
struct Fma { F operator()(F s, F a, F b) const { return _mm512_fmadd_ps(a, b, s); } };
#elif defined(__FMA__)
using F = __m256; constexpr double kFloat = 16; static F half() { return _mm256_set1_ps(0.5f); }
struct Fma { F operator()(F s, F a, F b) const { return _mm256_fmadd_ps(a, b, s); } };
#endif
template <class T, class Step> void loop(T x, Step step) {
  T s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x, s6 = x, s7 = x, s8 = x, s9 = x, sa = x, sb = x, y = x;
  T* sums[12] = {&s0, &s1, &s2, &s3, &s4, &s5, &s6, &s7, &s8, &s9, &sa, &sb};
  for (T* each : sums) asm volatile("" : "+m"(*each));  // so that they are not seen to be equal
  for (int i = 0; i < 4000000; ++i) {
    asm volatile("" : "+x"(x), "+x"(y));  // so that no step can be moved out of the loop
    s0 = step(s0, x, y); s1 = step(s1, x, y); s2 = step(s2, x, y); s3 = step(s3, x, y);
    s4 = step(s4, x, y); s5 = step(s5, x, y); s6 = step(s6, x, y); s7 = step(s7, x, y);
    s8 = step(s8, x, y); s9 = step(s9, x, y); sa = step(sa, x, y); sb = step(sb, x, y);
  }
  for (T* each : sums) asm volatile("" : "+m"(*each));  // and are used
}
template <class Work> double best(int threads, double operations, Work work) {
  double most = 0;
  for (int turn = 0; turn < 8; ++turn) {
    auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(work);
    for (auto& thread : pool) thread.join();
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double rate = threads * 12 * 4e6 * operations / seconds;
    if (rate > most) most = rate;
  }
  return most;
}
int main(int, char** argv) {
  int threads = std::atoi(argv[1]);
  double integer = best(threads, kInt, [] { loop(one(), Dot()); });
  double single = best(threads, kFloat, [] { loop(half(), Fma()); });
  std::printf("%g %g\n", integer, single);
}
"""


@dataclass(frozen=True)
class Peaks:
    """Operations a second of all threads together; a multiplication with its addition counts as two."""

    int8: float
    float32: float

    def __str__(self) -> str:
        return f"peaks: int8 {self.int8 / 1e9:.0f} GOP/s, float32 {self.float32 / 1e9:.0f} GFLOP/s"


def measure_peaks(threads: int) -> Peaks | str:
    """Return the peaks of so many threads at once, or in words why there are none."""
    found = compiled_figures(SOURCE, str(threads))
    return f"peaks {found}" if isinstance(found, str) else Peaks(*found)


def compiled_figures(code: str, *arguments: str) -> list[float] | str:
    """Return the numbers that a C++ program prints, compiled for this CPU, or in words why there are none."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        return "not measured: there is no C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "loops.cpp", Path(folder) / "loops"
        source.write_text(code)
        command = [compiler, "-O2", "-march=native", "-std=c++17", "-pthread", str(source), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            run = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return f"not measured: {(error.stderr.splitlines() or [str(error)])[0][:100]}"
    return list(map(float, run.stdout.split()))
