"""What fxquant's int8 encoders cost beside latency: seconds to quantize, time a token, a second thread, and memory.

    python benchmarks/cpu_costs.py [--models minilm bert-base] [--tables seconds tokens threads memory] [--work DIR]
                                   [--json FILE] [--threads 2] [--quick]

Every figure is taken in a process of its own (cost_roles.py) that starts afresh, with the kernels built before. Memory:
a saved artifact, and the ONNX file of the same model quantized dynamically for ONNX Runtime (if it is installed), each
loaded and run at 8×128 with nothing else in the process. An artifact is read with torch, an ONNX file without: "own" is
the peak without what the process had in memory when the libraries had been imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from encoder_models import NAMES, load_subject
from systems import ORT_DYNAMIC, SYSTEMS, Context

import fxquant as fxq

SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTH = 128  # tokens of a sequence
SHAPES = ((1, 16), (1, 128), (8, 128))  # for one thread and two
GOAL = 5.0  # seconds to quantize and lower


@dataclass(frozen=True)
class Asked:
    """A model on disk, and what its processes are told."""

    args: argparse.Namespace
    context: Context
    artifact: Path

    def __call__(self, role: str, path: Path | None = None, **spec: Any) -> dict[str, Any]:
        """Return what a process answers."""
        args, whole = self.args, {"threads": self.args.threads, "path": str(path or self.artifact)} | spec
        whole |= {"model": self.context.subject.name, "folder": args.folder and str(args.folder), "quick": args.quick}
        whole |= {"rounds": args.rounds, "seconds": args.seconds, "shape": (8, args.length)}
        command = [sys.executable, str(Path(__file__).with_name("cost_roles.py")), role, json.dumps(whole)]
        environment = os.environ | {"OMP_NUM_THREADS": str(whole["threads"])}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return answer


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    print(common.machine(), flush=True)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        for name in args.models:
            asked = saved(args, name, args.work or Path(temporary))
            found[name] = {table: TABLES[table](asked) for table in args.tables}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=tuple(TABLES))
    parser.add_argument("--folder", type=Path, help="of another BERT-like encoder in MiniLM's place")
    parser.add_argument("--work", type=Path, help="folder that keeps converted models")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="at least, of each latency")
    parser.add_argument("--seconds", type=float, default=3, help="more rounds are run until it has taken so long")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sequence")
    parser.add_argument("--quick", action="store_true", help="one round, a small BERT")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.seconds = 1, 0.0
    return args


def saved(args: argparse.Namespace, name: str, work: Path) -> Asked:
    """Return a model whose artifact is on disk; lowering it builds the kernels, if they were not."""
    subject = load_subject(name, args.folder, 8, 4, args.quick)
    context = Context(subject, work / subject.digest(), args.threads)
    context.folder.mkdir(parents=True, exist_ok=True)
    lowered = fxq.lower(common.convert(subject.material.captured, "dynamic", ()))
    return Asked(args, context, fxq.save(lowered, context.folder / "artifact"))


def seconds(asked: Asked) -> dict[str, float]:
    """Print and return the seconds of each stage of quantizing."""
    found = asked("seconds")
    total = sum(found[stage] for stage in ("prepare", "convert", "lower"))
    goal = f"{'met' if total < GOAL else 'MISSED'}: below {GOAL:g}"
    row = [*(f"{each:.2f}" for each in found.values()), f"{total:.2f}", goal]
    head = [*found, "prepare + convert + lower", "goal"]
    common.show(f"{asked.context.subject.name}: seconds, recipe dynamic, kernels built before", head, [row])
    return found


def tokens(asked: Asked) -> dict[str, float]:
    """Print and return microseconds a token for batches of more and more sequences."""
    length = asked.args.length
    found = asked("latencies", shapes=[(size, length) for size in SIZES])
    each = {f"{size}x{length}": 1e6 * found[f"{size}x{length}"] / (size * length) for size in SIZES}
    common.show(f"{asked.context.subject.name}: µs a token", list(each), [[f"{value:.2f}" for value in each.values()]])
    return each


def threads(asked: Asked) -> dict[str, float]:
    """Print and return how many times faster two threads are than one."""
    shapes = [(size, min(length, asked.args.length)) for size, length in SHAPES]
    one, two = (asked("latencies", shapes=shapes, threads=count) for count in (1, 2))
    row = [f"{1e3 * one[shape]:.2f} → {1e3 * two[shape]:.2f}  {one[shape] / two[shape]:.2f}" for shape in one]
    common.show(f"{asked.context.subject.name}: ms of 1 thread → 2, ratio", list(one), [row])
    return {shape: one[shape] / two[shape] for shape in one}


def memory(asked: Asked) -> dict[str, dict[str, float]]:
    """Print and return the megabytes of a process that runs the artifact, and of one that runs ONNX Runtime."""
    found = {"fxquant dynamic": asked("fxquant")}
    try:
        SYSTEMS[ORT_DYNAMIC](asked.context)
        found[ORT_DYNAMIC] = asked("onnxruntime", path=asked.context.folder / "ort-dynamic.onnx")
    except ImportError as error:
        print(f"{ORT_DYNAMIC}: not measured: {error}")
    rows = [
        [name, *(f"{each:.0f}" for each in row.values()), f"{row['peak'] - row['imported']:.0f}"]
        for name, row in found.items()
    ]
    title = f"{asked.context.subject.name}: resident megabytes, run at 8×{asked.args.length}"
    common.show(title, ["", "libraries imported", "model loaded", "peak", "own"], rows)
    return found


TABLES: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "seconds": seconds,
    "tokens": tokens,
    "threads": threads,
    "memory": memory,
}

if __name__ == "__main__":
    main()
