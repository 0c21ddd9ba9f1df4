"""`fxquant quantize`: a model folder becomes an artifact."""

import argparse
from pathlib import Path
from typing import Any

from torch import fx

from fxquant.artifact import check_destination, save
from fxquant.backends import load_backend
from fxquant.calibration import calibrate
from fxquant.commands.options import BACKEND, RECIPE, add_backend, add_command, add_model, progress
from fxquant.errors import ConfigError, DataError
from fxquant.evaluation.pretrained import Pretrained, load_pretrained
from fxquant.evaluation.text import read_sentences
from fxquant.passes.unpad import EXACT, ZERO
from fxquant.program import Program
from fxquant.quantize import capture_any, check_coverage, ledger, needs_calibration
from fxquant.stages import convert, lower, prepare


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "quantize", run, "Quantize a text model and save it as an artifact")
    add_model(parser)
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="a folder that is new, empty or holds an artifact")
    add_backend(parser, BACKEND)
    parser.add_argument(
        "--recipe",
        metavar="R",
        default=RECIPE,
        help=f"recipe of the backend, or path of a .toml file (default: {RECIPE})",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", type=Path, help="text to find static ranges with, one sentence a line"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sentences in a batch of calibration (default: 8)")
    parser.add_argument("--batches", type=int, default=64, help="batches of calibration at most (default: 64)")
    parser.add_argument(
        "--padded-outputs",
        choices=(EXACT, ZERO),
        default=EXACT,
        help="what outputs hold at padding: what the model computes there, or zeros, so that it runs on tokens alone "
        "(default: exact)",
    )
    parser.add_argument("--strict", action="store_true", help="fail if an op that should be quantized stays in float")


def run(args: argparse.Namespace) -> str:
    """Return the ledger's summary and where the artifact is."""
    check_destination(args.output)  # before minutes are spent on what could not be saved
    backend = load_backend(args.backend or BACKEND)
    recipe = backend.recipe(args.recipe)
    sentences = read_sentences(args.calibration) if args.calibration else ()
    with progress(f"loading {args.model}"):
        pretrained = load_pretrained(args.model, args.task)
    with progress("capturing"):
        captured = capture_any(pretrained.model, pretrained.example_inputs())
    with progress("matching"):
        prepared = prepare(captured, backend, recipe)
    if args.strict:
        check_coverage(prepared)
    notes = _calibrate(prepared, pretrained, sentences, args)
    with progress("converting and lowering"):
        lowered = lower(convert(prepared), padded_outputs=args.padded_outputs)
    if args.strict:
        check_coverage(lowered)
    with progress(f"saving {args.output}"):
        save(lowered, args.output)
    if pretrained.missing:
        notes.append(f"note: the checkpoint lacks these weights, which are random: {', '.join(pretrained.missing)}")
    if isinstance(lowered, Program) and lowered.generates:
        notes.append(f"generates: fxquant.load({str(args.output)!r}).generate(input_ids=...)")
    size = sum(path.stat().st_size for path in args.output.iterdir() if path.is_file())
    return "\n".join([ledger(lowered).summary(), *notes, f"saved {args.output} ({size / 1e6:.1f} MB)"])


def _calibrate(
    prepared: fx.GraphModule | Program, pretrained: Pretrained, sentences: tuple[str, ...], args: argparse.Namespace
) -> list[str]:
    """Find the static ranges, if there are any to find, and return notes for the user."""
    if not needs_calibration(prepared):
        unused = "note: no range of this recipe is found by calibration, so the text was not used"
        return [unused] if args.calibration else []
    if not args.calibration:
        raise ConfigError(
            f"recipe {args.recipe} has static ranges: give --calibration FILE, a text with one sentence a line, or "
            "choose --recipe dynamic"
        )
    if args.batch_size < 1 or args.batches < 1:
        raise DataError(f"--batch-size {args.batch_size}, --batches {args.batches}: expected at least 1 of each")
    calibrate(prepared, pretrained.batches(sentences[: args.batch_size * args.batches], args.batch_size))
    return []
