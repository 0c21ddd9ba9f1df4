"""Time the attention kernel against torch's scaled_dot_product_attention, over heads of MiniLM's and BERT's size.

    python benchmarks/attention_kernels.py [--threads 2] [--rounds 40] [--lengths 16 64 128 512] [--batches 1 8 32]

Each row is one (B, S, D) with 12 heads: the median time in microseconds of torch's attention with the transposes that
the graph has around it, the same with a boolean mask of four dimensions, and of `fxquant::attention` on the merged
query, key and value: no mask, a key mask with every key alive, one with 55% of them alive, and the same tokens packed,
the candidates taken in turn within every round. GFLOP/s count both products of all positions and nothing else; beside
them stands their share of what the cores reach at best, a fused multiply-add every cycle on all lanes, which is
measured first. Run it on an idle machine, or with one thread.
"""

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from linear_kernels import machine, medians
from torch import Tensor
from torch.nn import functional

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.kernels.cpu import native

HEADS = 12
ALIVE = 0.55
PEAK = """
#include <immintrin.h>
// 16 chains of fused multiply-adds hide their latency; `lanes` floats are done by each.
extern "C" __attribute__((target("avx512f"))) float wide(long n) {
  __m512 a[16], b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f);
  for (int i = 0; i < 16; ++i) a[i] = _mm512_set1_ps(i);
  for (long r = 0; r < n; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = _mm512_fmadd_ps(a[i], b, c);
  for (int i = 1; i < 16; ++i) a[0] = _mm512_add_ps(a[0], a[i]);
  return _mm512_reduce_add_ps(a[0]);
}
extern "C" __attribute__((target("avx2,fma"))) float narrow(long n) {
  __m256 a[12], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-3f);
  for (int i = 0; i < 12; ++i) a[i] = _mm256_set1_ps(i);
  for (long r = 0; r < n; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) a[i] = _mm256_fmadd_ps(a[i], b, c);
  for (int i = 1; i < 12; ++i) a[0] = _mm256_add_ps(a[0], a[i]);
  float out[8];
  _mm256_storeu_ps(out, a[0]);
  return out[0];
}
"""


def peak(isa: str) -> float:
    """Return the float32 GFLOP/s of one core, by a loop of fused multiply-adds; 0 where there is no compiler."""
    if shutil.which("c++") is None:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cpp", Path(folder) / "peak.so"
        source.write_text(PEAK)
        subprocess.run(["c++", "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
        run, chains, lanes = (loaded.wide, 16, 16) if isa.startswith("avx512") else (loaded.narrow, 12, 8)
        run.restype = ctypes.c_float
        rounds, best = 4_000_000, float("inf")
        for _ in range(5):
            start = time.perf_counter()
            run(ctypes.c_long(rounds))
            best = min(best, time.perf_counter() - start)
    return 2 * chains * lanes * rounds / best / 1e9


def candidates(batch: int, length: int, width: int) -> dict[str, Callable[[], Tensor]]:
    """Return what is compared at one size."""
    columns = HEADS * width
    merged = torch.randn(batch, length, 3 * columns)
    alive = torch.full((batch,), max(round(length * ALIVE), 1))
    ragged = torch.arange(length) < alive[:, None]
    packed, offsets = merged[ragged][None], torch.tensor([0, *alive.cumsum(0)])
    every = torch.ones(batch, length, dtype=torch.bool)
    op, rest = torch.ops.fxquant.attention, (HEADS, HEADS, width**-0.5, False)

    def of_torch(mask: Tensor | None) -> Tensor:
        parts = (x.reshape(batch, length, HEADS, width).transpose(1, 2) for x in merged.split(columns, -1))
        y = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return y.transpose(1, 2).reshape(batch, length, columns)

    return {
        "torch": lambda: of_torch(None),
        "torch, mask": lambda: of_torch(every[:, None, None].expand(batch, 1, length, length)),
        "ours": lambda: op(merged, None, None, None, None, *rest),
        "key mask": lambda: op(merged, None, None, every, None, *rest),
        "55% alive": lambda: op(merged, None, None, ragged, None, *rest),
        "packed": lambda: op(packed, None, None, None, offsets, *rest),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the attention kernel against torch's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not native.available():
        sys.exit("skipped: the C++ kernels cannot be used here")
    core = peak(native.use_isa(""))
    limit = core * arguments.threads
    print(f"{machine()}, kernels: {native.use_isa('')}; {core:.0f} GFLOP/s a core at best")
    names = ("torch", "torch, mask", "ours", "key mask", "55% alive", "packed")
    head = "".join(f"{name:>12}" for name in names)
    print(f"{'B':>4}{'S':>6}{'D':>5}{head}  torch/ours  GFLOP/s of ours, share of the limit")
    for width in (32, 64):
        for length in arguments.lengths:
            for batch in arguments.batches:
                with torch.inference_mode():
                    found = medians(candidates(batch, length, width), arguments.rounds)
                rate = 4 * batch * HEADS * length**2 * width / found["ours"] / 1e3
                times = "".join(f"{found[name]:12.1f}" for name in names)
                share = f"{rate / limit:.0%}" if limit else "?"
                print(
                    f"{batch:4}{length:6}{width:5}{times}{found['torch'] / found['ours']:12.2f}{rate:10.0f} {share:>5}"
                )


if __name__ == "__main__":
    main()
