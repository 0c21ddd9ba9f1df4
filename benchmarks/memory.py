"""How fast this machine's memory is read: the limit of a product with one row, which reads every weight once.

The loop is compiled at run time with the C++ compiler that builds the kernels, as that of peaks.py is.
"""

from peaks import compiled_figures

# Each thread reads a part of its own, in huge pages where the system has them, which nothing reads faster.
SOURCE = r"""
#include <immintrin.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <sys/mman.h>
#include <vector>
#if defined(__AVX512F__)
using V = __m512i; static V both(V a, V b) { return _mm512_or_si512(a, b); }
static V load(const char* p) { return _mm512_load_si512(p); }
#else
using V = __m256i; static V both(V a, V b) { return _mm256_or_si256(a, b); }
static V load(const char* p) { return _mm256_load_si256(reinterpret_cast<const V*>(p)); }
#endif
static void read(const char* p, const char* end) {
  V a = load(p), b = a, c = a, d = a;
  for (; p < end; p += 4 * sizeof(V)) {
    for (size_t line = 0; line < 4 * sizeof(V); line += 64) __builtin_prefetch(p + 8192 + line);
    a = both(a, load(p)), b = both(b, load(p + sizeof(V)));
    c = both(c, load(p + 2 * sizeof(V))), d = both(d, load(p + 3 * sizeof(V)));
  }
  asm volatile("" : : "x"(a), "x"(b), "x"(c), "x"(d));
}
int main(int, char** argv) {
  const int threads = std::atoi(argv[1]);
  const size_t part = size_t{1} << 28;
  char* memory = static_cast<char*>(std::aligned_alloc(1 << 21, threads * part));
  madvise(memory, threads * part, MADV_HUGEPAGE);
  std::memset(memory, 1, threads * part);
  double most = 0;
  for (int turn = 0; turn < 6; ++turn) {
    auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back([=] { read(memory + t * part, memory + (t + 1) * part); });
    for (auto& thread : pool) thread.join();
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (threads * part / seconds > most) most = threads * part / seconds;
  }
  std::printf("%g\n", most);
}
"""


def measure_reading(threads: int) -> float | str:
    """Return the bytes a second that so many threads read together, or in words why that is not known."""
    found = compiled_figures(SOURCE, str(threads))
    return found if isinstance(found, str) else found[0]
