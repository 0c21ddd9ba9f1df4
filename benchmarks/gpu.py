"""fxquant on an NVIDIA GPU beside torch.compile and torchao: encoders, products of few rows, decoding; in one run.

    python benchmarks/gpu.py [--tables encoders products decoding] [--rounds 15] [--seconds 20] [--results DIR]
                             [--dry-run]

BERT-large (32 sequences of 128 tokens) and RoBERTa-base (32 of 256) have random weights, as how long they take does not
depend on them. All ways to run one take turns; times are medians. Products of one row are timed over more weights than
the cache holds, beside a copy's speed. Raw results are written to benchmarks/results with date and versions. torchao is
optional: pip install torchao. Without a GPU, --dry-run runs all of it on tiny models, to see that it works.
"""

import argparse
import functools
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import gpu_decoding
import gpu_products
import gpu_systems
import torch
from gpu_machine import Machine, find
from gpu_systems import EAGER, WAYS, Encoder
from gpu_tables import DECODING, GOALS, PRODUCT_GOAL, Row, goal, show, show_goals
from torch.nn import functional
from turns import Timing, take_turns

TABLES = ("encoders", "products", "decoding")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables, and write the results."""
    args = parse(arguments)
    machine = find(args.dry_run)
    common.quieten()
    print("\n".join(machine.describe()), flush=True)
    found: dict[str, Any] = {"machine": machine.describe()}
    with torch.no_grad():
        if "encoders" in args.tables:
            found["encoders"] = [asdict(row) for row in encoders(args, machine)]
        if "products" in args.tables:
            found |= products(machine)
        if "decoding" in args.tables:
            found["decoding"] = [asdict(row) for row in decoding(args, machine)]
    if not machine.dry:
        print(f"\nwritten to {write(args.results, machine, found)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--rounds", type=int, default=15, help="at least, of each model")
    parser.add_argument("--seconds", type=float, default=20, help="more rounds are run until they have taken so long")
    parser.add_argument("--calibration", type=int, default=8, help="batches for the static recipe")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write raw results to")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, one round, nothing compiled")
    args = parser.parse_args(arguments)
    if args.dry_run:
        args.rounds, args.seconds, args.calibration = 1, 0.0, 1
    return args


def encoders(args: argparse.Namespace, machine: Machine) -> list[Row]:
    """Measure all encoders, and print their tables and goals."""
    rows = list[Row]()
    for encoder in gpu_systems.ENCODERS:
        found = in_turns(args, machine, encoder)
        show(encoder.name, found, EAGER)
        show_goals(found, GOALS, machine.dry)
        rows += found
    return rows


def in_turns(args: argparse.Namespace, machine: Machine, encoder: Encoder) -> list[Row]:
    """Return a row for each way to run an encoder."""
    context = gpu_systems.load(machine, encoder, args.calibration)
    batch, expected = context.batches[0], gpu_systems.hidden(context.model(**context.batches[0]))
    calls, cosines, failed = dict[str, Callable[[], object]](), dict[str, float](), list[Row]()
    for name, build in WAYS.items():
        try:
            check_time(name, machine)
            call = build(context)
            for _ in range(3):  # compiles, chooses, records
                result = gpu_systems.hidden(call(**batch))
            cosines[name] = float(functional.cosine_similarity(result, expected, dim=-1).min())
            calls[name] = machine.waiting(functools.partial(call, **batch))
            print(f"{encoder.name}: {name} made", flush=True)
        except Exception as error:  # a peer may fail in whatever way it likes; the others are still measured
            failed.append(Row(encoder.name, name, remark=reason(error)))
    timings = take_turns(calls, args.rounds, args.seconds)
    return [Row(encoder.name, name, each, cosines[name]) for name, each in timings.items()] + failed


def check_time(name: str, machine: Machine) -> None:
    """Raise in a dry run for what takes minutes to compile."""
    if machine.dry and any(part in name for part in gpu_systems.SLOW):
        raise RuntimeError("takes minutes to compile; left out of a dry run")


def reason(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:100]}"


def products(machine: Machine) -> dict[str, Any]:
    """Measure products of one row, and print their table and goal."""
    copy, found = machine.copy_bandwidth(), gpu_products.measure(machine)
    gpu_products.show(found, copy)
    least = min(each.bandwidth for each in found) / copy
    goal("4-bit products of one row, of a copy's bandwidth, least", least, PRODUCT_GOAL, machine.dry)
    return {"copy bytes per second": copy, "products": [asdict(each) for each in found]}


def decoding(args: argparse.Namespace, machine: Machine) -> list[Row]:
    """Measure a Llama-shaped 8B at batch 1, one model in memory at a time, and print its table and goal."""
    rows, count = list[Row](), 2 if machine.dry else gpu_decoding.TOKENS
    for name, build in gpu_decoding.DECODERS.items():
        try:
            check_time(name, machine)
            decoder = build(machine)
            ids = gpu_decoding.prompt(machine, 250, batch=1)
            for _ in range(2):
                decoder.run(ids, gpu_decoding.WARM if not machine.dry else 1)
            calls = {"long": functools.partial(decoder.run, ids, count), "none": functools.partial(decoder.run, ids, 0)}
            both = take_turns(calls, max(args.rounds // 3, 1), args.seconds)
            each = (both["long"].median - both["none"].median) / count  # without the prompt
            rows.append(Row("Llama 8B, a token", name, Timing(each, each, each, both["long"].calls)))
        except Exception as error:
            rows.append(Row("Llama 8B, a token", name, remark=reason(error)))
        decoder = None  # frees its memory for the next
        if not machine.dry:
            torch.cuda.empty_cache()
    show("Llama 8B, batch 1, a token", rows, gpu_decoding.BF16)
    show_goals(rows, DECODING, machine.dry)
    return rows


def write(folder: Path, machine: Machine, found: dict[str, Any]) -> Path:
    """Write all figures as JSON, seconds and bytes, into a file named for the GPU and the time."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(machine.device)).lower()
    path = folder / f"gpu-{name}-{datetime.now(UTC):%Y-%m-%d-%H%M}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
