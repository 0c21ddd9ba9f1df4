"""`fxquant diff` and `fxquant lock`: what changed between two artifacts of a model, for continuous integration."""

import argparse
from pathlib import Path
from typing import Any

from fxquant.commands.options import add_command, progress
from fxquant.errors import CheckError, DataError
from fxquant.verification.changes import Thresholds
from fxquant.verification.diff import diff, read_artifact
from fxquant.verification.diff_tables import SHOWN, diff_tables
from fxquant.verification.lock import write_lock

LOCK = "fxquant.lock"


def add(commands: Any) -> None:
    """Add the commands and their arguments."""
    parser = add_command(commands, "diff", run, "Compare two artifacts of a model, and fail if the new one is worse")
    parser.add_argument("old", metavar="OLD", type=Path, help=f"an artifact, or a lock file ({LOCK}) of one")
    parser.add_argument("new", metavar="NEW", type=Path, help="an artifact")
    text = ".npz or .safetensors with an array for each input, to run both on (default: generated)"
    parser.add_argument("--inputs", metavar="FILE", type=Path, help=text)
    known = Thresholds()
    for name, text in (
        ("coverage_drop", "share of multiply-accumulates that coverage may fall by"),
        ("scale_ratio", "how many times larger or smaller a scale may become"),
        ("sqnr", "least SQNR of a layer to the old one, in dB"),
        ("size_growth", "share of its size that it may grow by"),
    ):
        default = getattr(known, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, metavar="X", type=float, default=default, help=f"{text} (default: {default:g})")
    parser.add_argument("--limit", metavar="N", type=int, default=SHOWN, help=f"rows of a table (default: {SHOWN})")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser = add_command(commands, "lock", lock, "Write a lock file of an artifact, which diff takes as the old one")
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize made of a model")
    parser.add_argument("output", metavar="FILE", type=Path, nargs="?", default=Path(LOCK), help=f"(default: {LOCK})")


def run(args: argparse.Namespace) -> str:
    """Return what changed as tables or as JSON; a regression is an error."""
    if args.limit < 1:
        raise DataError(f"--limit {args.limit}: expected at least 1")
    thresholds = Thresholds(
        coverage_drop=args.coverage_drop,
        scale_ratio=args.scale_ratio,
        sqnr=args.sqnr,
        size_growth=args.size_growth,
    )
    with progress(f"comparing {args.old} and {args.new}"):
        found = diff(args.old, args.new, args.inputs, thresholds)
    text = found.to_json() if args.json else diff_tables(found, args.limit)
    if found.regressions:
        first, *rest = found.regressions
        more = f"; and {len(rest)} more" if rest else ""
        raise CheckError(f"{args.new} is worse than {args.old}: {first}{more}", text)
    return text


def lock(args: argparse.Namespace) -> str:
    """Return where the lock file was written."""
    with progress(f"loading {args.artifact}"):
        facts, _ = read_artifact(args.artifact)
    write_lock(facts, args.output)
    return f"wrote {args.output}: {len(facts.layers)} layers, coverage {facts.coverage['all']:.1%}"
