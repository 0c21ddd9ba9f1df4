"""Decoding on this CPU: fxquant beside torch, torchao, ONNX Runtime, OpenVINO and CTranslate2, in one run.

    python benchmarks/cpu_decoders.py [--models llama-512 gpt2-1024 ...] [--batches 1 4] [--peers SUBSTRING ...]
                                      [--prompt 128] [--tokens 64] [--rounds 5] [--seconds 20] [--threads 2]
                                      [--work DIR] [--json FILE] [--quick]

Models of Llama's and of GPT-2's kind with random weights read a prompt, then token after token, the likeliest each, as
generation code calls them: a mask of all tokens, a cache, the logits of the last token. All systems take turns; times
are medians, of the prompt and of one token apart. Beside fxquant's stands what reading its weights takes at the
bandwidth measured in the same run. Peers are optional: pip install openvino nncf onnx onnxruntime ctranslate2 torchao.
`--work` keeps what took long to convert for the next run.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import common
import torch
from decoder_models import SHAPES, Shape, digest, make, prompt, small
from decoder_systems import EAGER, OURS, SYSTEMS, Context, System
from memory import measure_reading
from torch import Tensor
from torch.nn import functional
from turns import rest

PACKAGES = ("openvino", "nncf", "onnxruntime", "ctranslate2", "torchao")
SLOW = ("compile",)  # in the names of systems that take a minute to make
WARM = 4  # tokens that do not count, at the beginning of a turn


@dataclass
class Row:
    """One system on one model and batch: seconds of each prompt and of each token, or why there are none."""

    model: str
    batch: int
    system: str
    prompts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    cosine: float | None = None
    limit: float | None = None  # seconds that reading the weights takes
    remark: str = ""

    @property
    def prompt(self) -> float:
        return statistics.median(self.prompts)

    @property
    def token(self) -> float:
        return statistics.median(self.tokens)


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    machine = f"{common.machine()}\n{', '.join(map(common.installed, PACKAGES))}"
    reading = measure_reading(args.threads)
    speed = reading if isinstance(reading, str) else f"{reading / 1e9:.1f} GB/s"
    print(f"{machine}\nreading memory: {speed}", flush=True)
    rows = list[Row]()
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        for shape in args.models:
            found = measure(args, shape, args.work or Path(temporary), None if isinstance(reading, str) else reading)
            show(found)
            rows += found
    show_ratios(rows)
    if args.json:
        known = {"machine": machine.splitlines(), "bytes_per_second": reading}
        args.json.write_text(json.dumps(known | {"rows": [asdict(row) for row in rows]}, indent=1))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--peers", nargs="*", default=[""], help="only those whose name contains one of these")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens after it")
    parser.add_argument("--rounds", type=int, default=5, help="at least, of each model and batch")
    parser.add_argument("--seconds", type=float, default=20, help="more rounds are run until they have taken so long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder that keeps converted peers")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round, nothing that is compiled")
    args = parser.parse_args(arguments)
    args.models = [shape for shape in SHAPES if shape.name in args.models]
    if args.quick:
        args.rounds, args.seconds, args.prompt, args.tokens = 1, 0.0, 8, 4
        args.models = [small(shape) for shape in args.models]
    return args


def measure(args: argparse.Namespace, shape: Shape, work: Path, reading: float | None) -> list[Row]:
    """Return a row for each system and batch, of one model."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work.resolve() / "inductor"))
    context = Context(shape, make(shape), work / digest(shape), args.threads)
    context.folder.mkdir(parents=True, exist_ok=True)
    systems, rows = build(args, context)
    expected = systems[EAGER].logits
    assert expected is not None, "the float model shows its logits"
    for batch in args.batches:
        ids = prompt(shape, batch, args.prompt)
        cell = {name: Row(shape.name, batch, name) for name in systems}
        for name, system in systems.items():
            try:
                take_turn(system, ids, args.tokens, cell[name])
                cell[name].cosine = nearness(system, expected(ids), ids)
            except Exception as error:  # a peer may fail in whatever way it likes; the others are still measured
                cell[name].remark = reason(error)
            if system.bytes is not None and reading is not None:
                cell[name].limit = system.bytes / reading
        take_turns(args, systems, ids, cell)
        rows += cell.values()
    return rows


def build(args: argparse.Namespace, context: Context) -> tuple[dict[str, System], list[Row]]:
    """Return the systems that could be made, and rows that say why others could not."""
    systems, missing = dict[str, System](), list[Row]()
    for name, builder in SYSTEMS.items():
        if name != EAGER and name not in OURS and not any(part in name for part in args.peers):
            continue
        start = time.perf_counter()
        try:
            if args.quick and any(part in name for part in SLOW):
                raise RuntimeError("takes a minute to compile; left out by --quick")
            systems[name] = builder(context)
            print(f"{context.shape.name}: {name} made in {time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:
            missing.append(Row(context.shape.name, 0, name, remark=reason(error)))
    return systems, missing


def reason(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:90]}"


def nearness(system: System, expected: Tensor, ids: Tensor) -> float | None:
    """Return the least cosine of the logits after the prompt with those of the float model."""
    if system.logits is None:
        return None
    return float(functional.cosine_similarity(system.logits(ids), expected, dim=-1).min())


def take_turns(args: argparse.Namespace, systems: Mapping[str, System], ids: Tensor, cell: Mapping[str, Row]) -> None:
    """Time each system in turn, in rounds; what the first calls took, which compile and pack, does not count."""
    names = [name for name in systems if not cell[name].remark]
    for name in names:
        cell[name].prompts, cell[name].tokens = [], []
    end, number = time.perf_counter() + args.seconds, 0
    while number < args.rounds or time.perf_counter() < end:
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rest()
            systems[name].run(ids, WARM)
            take_turn(systems[name], ids, args.tokens, cell[name])
        number += 1


def take_turn(system: System, ids: Tensor, tokens: int, row: Row) -> None:
    """Add the times of one prompt and of the tokens after it."""
    found = system.run(ids, tokens)
    row.prompts.append(found.prompt)
    row.tokens += found.tokens


def show(rows: list[Row]) -> None:
    """Print one model's table of each batch, and what is to be said of systems."""
    for batch in sorted({row.batch for row in rows if row.batch}):
        table = [entry(row) for row in rows if row.batch == batch and not row.remark]
        head = ("", "prompt, ms", "token, ms", "tokens/s", "weights alone, ms", "times that", "cosine")
        common.show(f"{rows[0].model}, batch {batch}", head, table)
    for row in rows:
        if row.remark:
            print(f"  {row.system}{f' at batch {row.batch}' * bool(row.batch)}: {row.remark}")


def entry(row: Row) -> tuple[str, ...]:
    """Return one line of a table."""
    limit, times = ("", "") if row.limit is None else (f"{1e3 * row.limit:.2f}", f"{row.token / row.limit:.2f}")
    cosine = "" if row.cosine is None else f"{row.cosine:.4f}"
    each = f"{row.batch / row.token:.0f}"
    return row.system, f"{1e3 * row.prompt:.1f}", f"{1e3 * row.token:.3f}", each, limit, times, cosine


def show_ratios(rows: list[Row]) -> None:
    """Print how many times longer each peer's token takes than that of fxquant's recipe for as many bits, and least."""
    found = {(row.model, row.batch, row.system): row.token for row in rows if row.batch and not row.remark}
    table = []
    for peer in dict.fromkeys(row.system for row in rows if row.system not in OURS):
        line = [peer]
        for own in OURS:
            each = {cell[:2]: seconds / found[*cell[:2], own] for cell, seconds in found.items()
                    if cell[2] == peer and (*cell[:2], own) in found}  # fmt: skip
            if not each:
                continue
            (model, batch), least = min(each.items(), key=lambda item: item[1])
            line.append(f"{statistics.geometric_mean(each.values()):.2f}  {least:.2f} ({model}, {batch})")
        if len(line) > 1:
            table.append(line)
    common.show("A peer's token takes so many times as long as of: geometric mean, least", ("", *OURS), table)


if __name__ == "__main__":
    main()
