"""Time linears of float32 activations and 8- or 4-bit weights against floats and against torch's own kernels.

    python benchmarks/weight_only_kernels.py [--threads 2] [--rounds 30] [--rows 1 4 16 128] [--size 4096 4096]

Each row of the table is one (K, N, M) and one candidate: the median time in microseconds; the bytes of the weight
(scales included) over that time, and what share that is of a plain read of memory, measured before; multiply-
accumulates counted twice over that time; and how many times faster than float32 `linear` it is. The candidates
(weight_only_candidates.py): float32 and bfloat16 `linear`; float32 with weights packed by oneDNN; torch's kernels of
8- and 4-bit weights, and torchao's int8 where it is installed, under bfloat16; ours, of float32 activations. Every
candidate has as many copies of its weight as fill 256 MB, up to 64, and takes them in turn, as a model takes its
layers: large weights are not in the cache when they are asked for. Needs an idle machine.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from common import machine, quieten
from memory import measure_reading
from torch import Tensor
from weight_only_candidates import FLOAT, Candidate, candidates

from fxquant.kernels.cpu import native

SIZES = [(4096, 4096), (2048, 2048), (1024, 4096), (512, 512)]


def medians(found: dict[str, Candidate], x: Tensor, rounds: int) -> dict[str, float]:
    """Return the median time of each candidate in seconds, the candidates taking turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    rows = {name: x.to(candidate.dtype) for name, candidate in found.items()}
    for turn in range(rounds + 2):
        for name, (multiply, weights, *_) in found.items():
            weight, own = weights[turn % len(weights)], rows[name]
            start = time.perf_counter()
            multiply(own, weight)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def lines(depth: int, width: int, rows: int, found: dict[str, Candidate], rounds: int, reading: float) -> Iterator[str]:
    """Yield the rows of the table for one size."""
    taken = medians(found, torch.randn(rows, depth), rounds)
    for name, candidate in found.items():
        seconds = taken[name]
        rate = candidate.size / seconds
        figures = f"{seconds * 1e6:10.1f}{rate / 1e9:8.1f}{rate / reading:8.2f}"
        speed = f"{2 * rows * depth * width / seconds / 1e9:9.1f}{taken[FLOAT] / seconds:8.2f}"
        yield f"{depth:6}{width:6}{rows:6}  {name:28}{figures}{speed}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="weight-only linear kernels against floats and torch's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128])
    parser.add_argument("--size", type=int, nargs=2, action="append", help="K and N; may be given several times")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    quieten()
    print(f"{machine()}\nkernels: {native.use_isa('') if native.available() else 'no C++ ones'}")
    reading = measure_reading(arguments.threads)
    print(f"a plain read of memory: {reading if isinstance(reading, str) else f'{reading / 1e9:.1f} GB/s'}")
    print(f"{'K':>6}{'N':>6}{'M':>6}  {'weights':28}{'µs':>10}{'GB/s':>8}{'of read':>8}{'GFLOP/s':>9}{'ratio':>8}")
    for depth, width in arguments.size or SIZES:
        with torch.inference_mode():
            found = candidates(depth, width)
            for rows in arguments.rows:
                rounds = max(arguments.rounds // (1 + rows // 16), 3)
                speed = float("nan") if isinstance(reading, str) else reading
                print("\n".join(lines(depth, width, rows, found, rounds, speed)), flush=True)


if __name__ == "__main__":
    main()
