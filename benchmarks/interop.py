"""fxquant's files in ONNX Runtime and OpenVINO, beside what their own quantizers make of the same model.

    python benchmarks/interop.py [--models minilm bert-base gpt2 vit] [--recipes static …] [--cells 8x128 …]
                                 [--work DIR] [--rounds 7] [--seconds 10] [--threads 2] [--convert] [--quick]

MiniLM has its real weights and is judged on real sentences that did not calibrate; the others have random weights of
the size of BERT-base, GPT-2 and ViT-base. The difference is that of a runtime to the Q/DQ graph with the substitutions
of the export, as a share of the largest output. Systems take turns, ONNX Runtime's and NNCF's own quantizers among
them. Packages: pip install fxquant[onnx] onnxruntime openvino nncf. `--work` keeps what took long.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import torch
import transformers
from common import Batch
from encoder_models import CELLS, SMALL, Cell, Subject, load_subject
from interop_peers import FILES, Source
from systems import SYSTEMS, Context
from torch import nn
from torch.utils import _pytree as pytree
from turns import take_turns

import fxquant as fxq
from fxquant.evaluation.embedding import agreement, embed
from fxquant.integrations.runtimes import RUNTIMES

MODELS = ("minilm", "bert-base", "gpt2", "vit")
RECIPES = ("static", "static-smoothquant", "dynamic", "weight-only")
Call = Callable[..., Any]


@dataclass(frozen=True)
class Road:
    """How a model comes to a runtime: the backend that quantizes it, and the runtime in fxquant's table of them."""

    backend: str
    runtime: str


@dataclass(frozen=True)
class Model:
    """A model with batches to calibrate; `subject` where it is like BERT, so that peers and cells are those of it."""

    name: str
    module: nn.Module
    example: Batch
    calibration: list[Batch]
    subject: Subject | None = None


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    print(common.machine(), *map(common.installed, ("onnxruntime", "openvino", "nncf", "onnx", "onnxscript")), sep="\n")
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            measure(args, load(name, args), (args.work or Path(temporary)) / name)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cells = [cell.name for cell in CELLS]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--minilm", type=Path, help="folder of another BERT-like encoder in MiniLM's place")
    parser.add_argument("--cells", nargs="+", choices=cells, default=["8x128", "1x128", "1x16"], help="batch × tokens")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--work", type=Path, help="folder that keeps what was converted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10, help="more rounds are run until a cell has taken so long")
    parser.add_argument("--convert", action="store_true", help="write the files into --work, and measure no times")
    parser.add_argument("--quick", action="store_true", help="one round, small models")
    args = parser.parse_args(arguments)
    args.cells = [cell for cell in CELLS if cell.name in args.cells]
    if args.quick:
        args.rounds, args.seconds = 1, 0.0
    return args


def load(name: str, args: argparse.Namespace) -> Model:
    """Return a model, with random weights where it is not MiniLM."""
    if name in ("minilm", "bert-base"):
        folder = args.minilm if name == "minilm" else None
        subject = load_subject(name, folder, 16 if args.quick else 256, 2 if args.quick else 32, args.quick)
        batches = list(subject.material.calibration)
        return Model(name, subject.model, batches[0], batches, subject)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batches = _gpt2(args.quick) if name == "gpt2" else _vit(args.quick)
    return Model(name, model.eval(), batches[0], batches)


def _gpt2(small: bool) -> tuple[nn.Module, list[Batch]]:
    sizes = (
        {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 256, "eos_token_id": 0, "bos_token_id": 0}
        if small
        else {}
    )
    config = transformers.GPT2Config(**sizes, use_cache=False)
    shape = (2, 32)
    mask = torch.ones(shape, dtype=torch.long)  # without one, what looks for packed sequences cannot be exported
    batches = [{"input_ids": torch.randint(config.vocab_size, shape), "attention_mask": mask} for _ in range(4)]
    return transformers.GPT2Model(config), batches


def _vit(small: bool) -> tuple[nn.Module, list[Batch]]:
    config = transformers.ViTConfig(**({**SMALL, "image_size": 64} if small else {}))
    return transformers.ViTModel(config), [
        {"pixel_values": torch.randn(2, 3, config.image_size, config.image_size)} for _ in range(4)
    ]


def measure(args: argparse.Namespace, model: Model, folder: Path) -> None:
    """Print the tables of one model."""
    folder.mkdir(parents=True, exist_ok=True)
    captured = model.subject.material.captured if model.subject else fxq.capture(model.module, model.example)
    ours = dict[str, Call]()
    differences = []
    for recipe in args.recipes:
        for name, road in ROADS.items():
            qdq, path = exported(captured, recipe, model, folder, road)
            reference = RUNTIMES[road.runtime].reference(qdq)
            call = started(path, list(model.example), road.runtime, args.threads)
            ours[f"fxquant {recipe} in {name}"] = call
            differences.append((recipe, name, f"{difference(call, reference, model.calibration[-1]):.1e}"))
    common.show(f"{model.name}: largest difference to the Q/DQ graph", ("recipe", "runtime", "difference"), differences)
    peers = own_quantizers(args, model, folder)
    if args.convert:
        return
    if model.subject is not None and model.subject.held_out:
        judge(model.subject, ours | peers)
    cells = args.cells if model.subject else []
    show_latency(args, model, ours | peers, {cell.name: model.subject.batch(cell) for cell in usable(cells, model)})


def usable(cells: list[Cell], model: Model) -> list[Cell]:
    """Return the cells that a model takes."""
    return [cell for cell in cells if model.subject is not None and model.subject.fits(cell)]


def exported(captured: Any, recipe: str, model: Model, folder: Path, road: Road) -> tuple[Any, Path]:
    """Return a Q/DQ graph and its file, from the folder if they are there."""
    artifact, out = folder / f"{recipe}-{road.backend}-artifact", folder / f"{recipe}-{road.runtime}"
    runtime = RUNTIMES[road.runtime]
    if not artifact.exists():
        fxq.save(common.convert(captured, recipe, model.calibration, road.backend), artifact)
    qdq = fxq.load(artifact, lower=False)
    if not out.exists():
        fxq.export(qdq, out, format=runtime.format, target=runtime.target)
    return qdq, out / runtime.file


def started(path: Path, names: Sequence[str], runtime: str, threads: int) -> Call:
    """Return a file with inputs of these names as a runtime of fxquant's `verify` runs it, called with keywords."""
    call = RUNTIMES[runtime].start(path, names, threads)

    def run(**batch: torch.Tensor) -> SimpleNamespace:
        leaves = call([batch[name] for name in names])
        return SimpleNamespace(leaves=leaves, last_hidden_state=leaves[0])

    return run


ROADS = {
    "ORT": Road("x86", "onnxruntime"),
    "OpenVINO": Road("openvino", "openvino"),
    "OpenVINO's own files": Road("openvino", "openvino-ir"),
}


def difference(call: Call, reference: Call, batch: Batch) -> float:
    """Return the largest difference between a runtime and the graph, as a share of the largest output."""
    pairs = zip(call(**batch).leaves, pytree.tree_leaves(reference(**batch)), strict=True)
    return max(float((theirs - ours).abs().max() / ours.abs().max()) for theirs, ours in pairs)


def own_quantizers(args: argparse.Namespace, model: Model, folder: Path) -> dict[str, Call]:
    """Return what the runtimes' own quantizers make of the model; one that fails is said to."""
    found = dict[str, Call]()
    for name, (write, runtime) in FILES.items():
        try:
            if model.subject is not None:
                found[name] = SYSTEMS[name](Context(model.subject, folder, args.threads)).call
            else:
                path = write(Source(model.module, model.calibration, folder))
                found[name] = started(path, list(model.example), runtime, args.threads)
        except Exception as error:  # a peer may fail in whatever way it likes; the others are still measured
            print(f"{name}: not measured: {type(error).__name__}: {str(error)[:90]}")
    return found


def judge(subject: Subject, systems: Mapping[str, Call]) -> None:
    """Print how near the embeddings of each system are to those of the float model."""
    batches = subject.material.pretrained.batches(subject.held_out, 16)
    expected = embed(subject.model, batches)
    near = {name: agreement(expected, embed(call, batches)) for name, call in systems.items()}
    rows = [(name, f"{each.mean:.4f}", f"{each.minimum:.4f}") for name, each in near.items()]
    common.show(f"{subject.name}: embedding cosine with float32", ("system", "mean", "minimum"), rows)


def show_latency(
    args: argparse.Namespace, model: Model, systems: Mapping[str, Call], batches: dict[str, Batch]
) -> None:
    """Print medians in ms, systems in turns; a model that is not like BERT has its own batch alone."""
    chosen = batches or {"example": model.example}
    columns = []
    for batch in chosen.values():
        calls = {name: functools.partial(call, **batch) for name, call in systems.items()}
        for call in (*calls.values(), *calls.values()):
            call()
        columns.append(take_turns(calls, args.rounds, args.seconds))
    rows = [(name, *(f"{timings[name].median * 1e3:.2f}" for timings in columns)) for name in systems]
    common.show(f"{model.name}: ms", ("system", *chosen), rows)


if __name__ == "__main__":
    main()
