"""Time the int8 linear kernels against torch's own, over the linears of MiniLM and BERT-base.

    python benchmarks/linear_kernels.py [--threads 2] [--rounds 60] [--rows 1 16 128 1024]

Each row of the table is one (K, N, M): the median time in microseconds of float32 `linear`, of torch.ao's dynamic
linear (oneDNN engine; per-tensor activations), of our C++ kernels on packed weights, dynamic (uint8 affine per token)
and static (per-tensor uint8), and of the operators of torch that stand in for them where no compiler is found, each
followed by bias and the activation, the candidates taken in turn within every round. Ratios are torch.ao's time over
ours: above 1 ours is faster. Run it on an idle machine, or with one thread.

What profiles say: docs/performance.md for the C++ kernels. Of the stand-ins, at K=384 and N=1536 on one core:

- M=16: the GEMM takes about 75 of 175 µs; the rest is about 25 small torch operations and the call of a Python op.
- M=1024 with GELU: the GEMM 73%, GELU 16%, scale, zero point and bias 5% (two passes over the output, since oneDNN
  knows no scale per row), choosing scales and quantizing 4% (five passes over the input).
- `torch.aminmax` along an axis is not vectorised and takes fifteen times as long as `amin` and `amax`; so is the
  conversion of float32 to uint8 beside that to int8 or int32.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.nn import functional

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.packed import column_sums, pack

SIZES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
Candidates = dict[str, Callable[[], Tensor]]


def machine() -> str:
    """Return CPU name, cores and torch version on one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {len(names)} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def torch_ao(weight: Tensor, bias: Tensor) -> DynamicLinear:
    """Return torch.ao's dynamic linear of a float weight (N, K)."""
    linear = DynamicLinear(weight.shape[1], weight.shape[0])
    no_zero_point = torch.zeros(weight.shape[0], dtype=torch.int64)
    scale = weight.abs().amax(1) / 127
    linear.set_weight_bias(torch.quantize_per_channel(weight, scale, no_zero_point, 0, torch.qint8), bias)
    return linear


def candidates(rows: int, depth: int, width: int, activation: str) -> Candidates:
    """Return what is compared at one size."""
    x, weight, bias = torch.randn(rows, depth), torch.randn(width, depth), torch.randn(width)
    scale = weight.abs().amax(1) / 127
    integers = (weight / scale[:, None]).round().to(torch.int8)
    x_scale, x_zero_point = torch.tensor(0.04), torch.tensor(128, dtype=torch.int32)
    q = torch.ops.fxquant.quantize(x, x_scale, x_zero_point, None, 0, 255, torch.uint8)
    ao = torch_ao(weight, bias)
    after = functional.gelu if activation == "gelu" else (lambda y: y)
    ops = torch.ops.fxquant
    packed = (pack(integers), scale, column_sums(integers), bias, None, activation)
    plain = (integers, scale, bias, None, activation)
    output = (None, None, 0, 0, torch.float32)
    return {
        "float32": lambda: after(functional.linear(x, weight, bias)),
        "torch.ao": lambda: after(ao(x)),
        "dynamic": lambda: ops.packed_linear_dynamic_int8(x, *packed, "uint8", False, "restricted"),
        "static": lambda: ops.packed_linear_int8(q, x_scale, x_zero_point, *packed, *output),
        "stand-in, d.": lambda: ops.x86_linear_dynamic_int8(x, *plain, "uint8", "per-token", False, "restricted"),
        "stand-in, s.": lambda: ops.x86_linear_int8(q, x_scale, x_zero_point, *plain, *output),
    }


def medians(functions: Candidates, rounds: int) -> dict[str, float]:
    """Return the median time of each function in microseconds, the functions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= 3:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="int8 linear kernels against torch's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 128, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.quantized.engine = "onednn"
    warnings.simplefilter("ignore")
    print(f"{machine()}, kernels: {native.use_isa('') if native.available() else 'no C++ ones'}")
    names = ("float32", "torch.ao", "dynamic", "static", "stand-in, d.", "stand-in, s.")
    print(f"{'K':>5}{'N':>6}{'M':>6} {'act':5}{''.join(f'{name:>13}' for name in names)}  ratios of dynamic, static")
    for depth, width in SIZES:
        for activation in ("none", "gelu"):
            for rows in arguments.rows:
                with torch.inference_mode():
                    found = medians(candidates(rows, depth, width, activation), arguments.rounds)
                times = "".join(f"{value:13.1f}" for value in found.values())
                ratios = " ".join(f"{found['torch.ao'] / found[name]:5.2f}" for name in ("dynamic", "static"))
                print(f"{depth:5}{width:6}{rows:6} {activation:5}{times}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
