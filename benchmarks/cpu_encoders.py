"""Int8 encoders on this CPU: fxquant beside OpenVINO, ONNX Runtime, PT2E, torchao and CTranslate2, in one run.

    python benchmarks/cpu_encoders.py [--models minilm bert-base] [--cells 8x128 1x16 ...] [--peers SUBSTRING ...]
                                      [--work DIR] [--json FILE] [--rounds 7] [--seconds 12] [--threads 2] [--quick]

MiniLM has its real weights and is calibrated and judged on disjoint real sentences; BERT-base has random weights unless
`--bert` names a folder, as how long it takes does not depend on them. In each cell (batch × tokens) all systems take
turns (turns.py); latencies are medians, beside how many times faster than torch in float32, eager and with its linears
on oneDNN. A row whose linear layers did not all run on integers is marked and counts in no mean. Peers are optional:
pip install openvino nncf onnx onnxruntime ctranslate2 torchao. `--work` keeps what took long to convert for the next
run.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import common
import torch
from common import Batch
from encoder_models import CELLS, NAMES, Cell, Subject, load_subject
from encoder_tables import Accuracy, Row, show_accuracy, show_goals, show_latency, show_limit, show_ratios
from peaks import Peaks, measure_peaks
from systems import EAGER, OWN, SYSTEMS, Context, System
from turns import take_turns

from fxquant.evaluation.embedding import agreement, embed

PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx", "ctranslate2", "torchao")
SLOW = ("compile",)  # in the names of systems that take a minute to make


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    machine = f"{common.machine()}\n{', '.join(map(common.installed, PACKAGES))}"
    peaks = measure_peaks(args.threads)
    print(f"{machine}\n{peaks}", flush=True)
    rows, accuracies = list[Row](), list[Accuracy]()
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            subject = load_subject(name, folder(args, name), args.sentences, args.batches, args.quick)
            found, judged = measure(args, subject, args.work or Path(temporary))
            rows, accuracies = rows + found, accuracies + judged
            show_latency(subject.name, found)
            show_accuracy(judged)
            if isinstance(peaks, Peaks):
                show_limit(subject, found, peaks)
    show_ratios(rows)
    show_goals(rows, accuracies)
    if args.json:
        write(args.json, machine, peaks, rows, accuracies)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [cell.name for cell in CELLS]
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--cells", nargs="+", choices=names, default=names, help="batch × tokens")
    parser.add_argument("--peers", nargs="*", default=[""], help="only those whose name contains one of these")
    parser.add_argument("--minilm", type=Path, help="folder of another BERT-like encoder in MiniLM's place")
    parser.add_argument("--bert", type=Path, help="folder of a BERT-base with its tokenizer")
    parser.add_argument("--work", type=Path, help="folder that keeps converted peers")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="at least, of each cell")
    parser.add_argument("--seconds", type=float, default=12, help="more rounds are run until a cell has taken so long")
    parser.add_argument("--sentences", type=int, default=512, help="to judge embeddings with")
    parser.add_argument("--batches", type=int, default=32, help="of calibration, 8 sentences each")
    parser.add_argument("--quick", action="store_true", help="one round, a small BERT, nothing that is compiled")
    args = parser.parse_args(arguments)
    args.cells = [cell for cell in CELLS if cell.name in args.cells]
    if args.quick:
        args.rounds, args.seconds, args.sentences, args.batches = 1, 0.0, 16, 2
    return args


def folder(args: argparse.Namespace, name: str) -> Path | None:
    """Return where the weights of a model are, if an option says so."""
    found: Path | None = args.minilm if name == "minilm" else args.bert
    return found


def measure(args: argparse.Namespace, subject: Subject, work: Path) -> tuple[list[Row], list[Accuracy]]:
    """Return a row for each system in each cell, and how near each system's embeddings are."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work.resolve() / "inductor"))
    context = Context(subject, work / subject.digest(), args.threads)
    context.folder.mkdir(parents=True, exist_ok=True)
    systems, missing = build(args, context)
    rows = [Row(subject.name, "", name, remark=reason) for name, reason in missing.items()]
    for cell in filter(subject.fits, args.cells):
        rows += in_cell(args, subject, cell, systems)
    return rows, judge(subject, systems) if subject.held_out else []


def build(args: argparse.Namespace, context: Context) -> tuple[dict[str, System], dict[str, str]]:
    """Return the systems that could be made, and why others could not."""
    systems, missing = dict[str, System](), dict[str, str]()
    for name, builder in SYSTEMS.items():
        if name not in OWN and not any(part in name for part in args.peers):
            continue
        if args.quick and any(part in name for part in SLOW):
            missing[name] = "takes a minute to compile; left out by --quick"
            continue
        start = time.perf_counter()
        try:
            systems[name] = builder(context)
            print(f"{context.subject.name}: {name} made in {time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:  # a peer may fail in whatever way it likes; the others are still measured
            missing[name] = reason(error)
    return systems, missing


def reason(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:90]}"


def in_cell(args: argparse.Namespace, subject: Subject, cell: Cell, systems: Mapping[str, System]) -> list[Row]:
    """Return the rows of one cell."""
    batch = subject.batch(cell)
    calls, remarks, failed = dict[str, Callable[[], object]](), dict[str, str](), list[Row]()
    for name, system in systems.items():
        if system.where == "ragged" and not cell.ragged:
            continue
        try:
            remarks[name] = warmed(system, batch)
            calls[name] = functools.partial(system.call, **batch)
        except Exception as error:
            failed.append(Row(subject.name, cell.name, name, remark=reason(error)))
    timings = take_turns(calls, args.rounds, args.seconds)
    return failed + [Row(subject.name, cell.name, name, each, remarks[name]) for name, each in timings.items()]


def warmed(system: System, batch: Batch) -> str:
    """Call a system until it has compiled and packed what it needs for a shape; return why it fell back, or ""."""
    system.call(**batch)
    system.call(**batch)
    return system.fell_back(batch)


def judge(subject: Subject, systems: Mapping[str, System]) -> list[Accuracy]:
    """Return how near the embeddings of each system are to those of the float model."""
    batches = subject.material.pretrained.batches(subject.held_out, 16)
    expected = embed(systems[EAGER].call, batches)
    found = []
    for name, system in systems.items():
        if system.embeds:
            near = agreement(expected, embed(system.call, batches))
            found.append(Accuracy(subject.name, name, near.mean, near.minimum, near.sentences))
    return found


def write(path: Path, machine: str, peaks: Peaks | str, rows: list[Row], accuracies: list[Accuracy]) -> None:
    """Write all figures as JSON; seconds."""
    found = {"machine": machine.splitlines(), "peaks": asdict(peaks) if isinstance(peaks, Peaks) else None}
    tables = {"rows": [asdict(row) for row in rows], "accuracy": [asdict(each) for each in accuracies]}
    path.write_text(json.dumps(found | tables, indent=1))


if __name__ == "__main__":
    main()
