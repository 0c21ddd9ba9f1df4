"""`fxquant explain`: the ledger of a model folder, as it would be quantized, or of an artifact."""

import argparse
from pathlib import Path
from typing import Any

from torch import fx

from fxquant import manifest
from fxquant.artifact import load
from fxquant.backends import load_backend
from fxquant.commands.options import BACKEND, RECIPE, add_backend, add_command, add_task, progress
from fxquant.errors import ConfigError
from fxquant.evaluation.pretrained import load_pretrained
from fxquant.program import Program
from fxquant.quantize import capture_any, ledger
from fxquant.stages import prepare


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "explain", run, "Show for each op how it is quantized or why it is not")
    parser.add_argument("path", metavar="MODEL_DIR|ARTIFACT", type=Path, help="model folder, or what quantize saved")
    add_task(parser)
    add_backend(parser, f"{BACKEND}, or the artifact's own")
    parser.add_argument("--recipe", metavar="R", help=f"recipe for a model folder (default: {RECIPE})")
    parser.add_argument("--all", action="store_true", help="every op, also those that compute nothing")
    parser.add_argument("--json", action="store_true", help="every op, as JSON")


def run(args: argparse.Namespace) -> str:
    """Return the ledger as a table or as JSON."""
    found = ledger(_artifact(args) if manifest.is_artifact(args.path) else _planned(args))
    return found.to_json() if args.json else found.to_table(args.all)


def _artifact(args: argparse.Namespace) -> fx.GraphModule | Program:
    for option in ("recipe", "task"):
        if getattr(args, option) is not None:
            raise ConfigError(f"{args.path} is an artifact, whose {option} is settled: leave out --{option}")
    with progress(f"loading {args.path}"):
        return load(args.path, args.backend)


def _planned(args: argparse.Namespace) -> fx.GraphModule | Program:
    backend = load_backend(args.backend or BACKEND)
    recipe = backend.recipe(args.recipe or RECIPE)
    with progress(f"loading {args.path}"):
        pretrained = load_pretrained(args.path, args.task)
    with progress("capturing"):
        captured = capture_any(pretrained.model, pretrained.example_inputs())
    return prepare(captured, backend, recipe)
