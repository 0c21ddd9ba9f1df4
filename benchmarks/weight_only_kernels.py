"""Time linears of float32 activations and 8- or 4-bit weights against float32 and torch's own 4-bit kernel.

    python benchmarks/weight_only_kernels.py [--threads 2] [--rounds 30] [--rows 1 4 16 128 1024] [--size 4096 4096]

Each row of the table is one (K, N, M) and one candidate: the median time in microseconds, the bytes of the weight
(scales included) over that time, multiply-accumulates counted twice over that time, and how many times faster than
float32 `linear` it is. The candidates: float32 `linear`; the same with weights packed by oneDNN; torch's 4-bit kernel
(`_weight_int4pack_mm_for_cpu`, float32 activations, groups of 32); our int8 with one scale a channel; our int4, affine,
in groups of 32 and of 128. Every candidate has as many copies of its weight as fill 256 MB, up to 64, and takes them in
turn, as a model takes its layers: large weights are not in the cache when they are asked for. Needs an idle machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from common import machine, quieten
from torch import Tensor
from torch.nn import functional

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.kernels.x86 import native, weight_only
from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

FILL = 1 << 28  # bytes
SPECS = {
    "fxquant int8": QuantSpec(granularity="per-channel", symmetric=True),
    "fxquant int4, groups of 32": QuantSpec(dtype="int4", granularity="per-group", group_size=32),
    "fxquant int4, groups of 128": QuantSpec(dtype="int4", granularity="per-group", group_size=128),
}
FLOAT, ONEDNN, TORCH = "float32", "float32, oneDNN packed", "torch int4, groups of 32"
# What multiplies x with one copy of a weight, the copies, and the bytes of each.
Candidate = tuple[Callable[[Tensor, Tensor], Tensor], list[Tensor], int]


def copies(weight: Tensor, size: int) -> list[Tensor]:
    """Return as many copies of a packed weight of `size` bytes as fill the memory that is set aside."""
    return [weight.clone() for _ in range(min(max(FILL // size, 1), 64))]


def ours(weight: Tensor, spec: QuantSpec) -> Candidate:
    """Return our kernel on a float weight (N, K) quantized by `spec`."""
    n, k = shape = tuple(weight.shape)
    qparams = choose_qparams(weight, spec)
    packed = weight_only.pack(quantize(weight, qparams, spec), spec)
    scale = weight_only.pack_parameter(qparams.scale, shape, spec)
    zeros = None if spec.symmetric else weight_only.pack_parameter(qparams.zero_point, shape, spec)
    size = packed.numel() + 4 * scale.numel() + (0 if zeros is None else zeros.numel())
    group = weight_only.group_size(spec, k)
    op = torch.ops.fxquant.x86_packed_linear_weight_only.default
    return lambda x, each: op(x, each, scale, zeros, None, None, "none", n, group), copies(packed, size), size


def torch_int4(weight: Tensor, group: int = 32) -> Candidate:
    """Return torch's kernel on a float weight (N, K), affine in groups."""
    spec = QuantSpec(dtype="uint4", granularity="per-group", group_size=group)
    qparams = choose_qparams(weight, spec)
    integers = quantize(weight, qparams, spec)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int(), 1)
    # It computes S·(q − 8) + z.
    zeros = (8 - qparams.zero_point) * qparams.scale
    both = torch.stack((qparams.scale.t(), zeros.t()), dim=-1).contiguous()
    op = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    size = packed.numel() + 4 * both.numel()
    return lambda x, each: op(x, each, group, both), copies(packed, size), size


def onednn(weight: Tensor) -> Candidate:
    """Return oneDNN's float32 product with a packed weight (N, K)."""
    size = 4 * weight.numel()
    packed = [torch.ops.mkldnn._reorder_linear_weight(each) for each in copies(weight, size)]
    op = torch.ops.mkldnn._linear_pointwise.default
    return lambda x, each: op(x, each, None, "none", [], ""), packed, size


def candidates(depth: int, width: int) -> dict[str, Candidate]:
    """Return what is compared for one weight."""
    weight = torch.randn(width, depth) / depth**0.5
    size = 4 * weight.numel()
    return {
        FLOAT: (functional.linear, copies(weight, size), size),
        ONEDNN: onednn(weight),
        TORCH: torch_int4(weight),
        **{name: ours(weight, spec) for name, spec in SPECS.items()},
    }


def medians(found: dict[str, Candidate], x: Tensor, rounds: int) -> dict[str, float]:
    """Return the median time of each candidate in seconds, the candidates taking turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 2):
        for name, (multiply, weights, _) in found.items():
            start = time.perf_counter()
            multiply(x, weights[turn % len(weights)])
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def lines(depth: int, width: int, rows: int, found: dict[str, Candidate], rounds: int) -> Iterator[str]:
    """Yield the rows of the table for one size."""
    taken = medians(found, torch.randn(rows, depth), rounds)
    for name, (_, _, size) in found.items():
        seconds = taken[name]
        figures = f"{seconds * 1e6:10.1f}{size / seconds / 1e9:8.1f}{2 * rows * depth * width / seconds / 1e9:9.1f}"
        yield f"{depth:6}{width:6}{rows:6}  {name:28}{figures}{taken[FLOAT] / seconds:8.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="weight-only linear kernels against float32 and torch's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128, 1024])
    parser.add_argument("--size", type=int, nargs=2, action="append", help="K and N; may be given several times")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    quieten()
    print(f"{machine()}\nkernels: {native.use_isa('') if native.available() else 'no C++ ones'}")
    print(f"{'K':>6}{'N':>6}{'M':>6}  {'weights':28}{'µs':>10}{'GB/s':>8}{'GFLOP/s':>9}{'ratio':>8}")
    for depth, width in arguments.size or [(4096, 4096), (768, 3072), (384, 384)]:
        with torch.inference_mode():
            found = candidates(depth, width)
            for rows in arguments.rows:
                rounds = max(arguments.rounds // (1 + rows // 100), 3)
                print("\n".join(lines(depth, width, rows, found, rounds)), flush=True)


if __name__ == "__main__":
    main()
