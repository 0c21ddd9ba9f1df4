"""`fxquant verify`: an artifact on every runtime here, or its integers wherever its kernels can run."""

import argparse
from pathlib import Path
from typing import Any

from fxquant.artifact import load
from fxquant.commands.options import add_command, progress
from fxquant.errors import CheckError, ConfigError
from fxquant.integrations.runtimes import RUNTIMES
from fxquant.integrations.verify import verify
from fxquant.verification.devices import certify

_OF_RUNTIMES = ("inputs", "tolerance", "rounds", "runtime")  # options without a meaning for devices


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "verify", run, "Compare what an artifact computes on every runtime that is here")
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize made of a model")
    text = "instead, compare the integers of its products on every device that its kernels can run on here"
    parser.add_argument("--devices", action="store_true", help=text)
    text = ".npz or .safetensors with an array for each input (default: generated, from a fixed seed)"
    parser.add_argument("--inputs", metavar="FILE", type=Path, help=text)
    text = "output steps that runtimes may differ by (default: 1)"
    parser.add_argument("--tolerance", metavar="STEPS", type=float, help=text)
    parser.add_argument("--rounds", metavar="N", type=int, help="rounds of timing, 0 for none (default: 5)")
    text = "a backend, by name or path of its .toml file; may be repeated (default: all that are known)"
    parser.add_argument("--backend", metavar="B", action="append", help=text)
    text = f"another runtime, of {', '.join(RUNTIMES)}; may be repeated (default: all that are installed)"
    parser.add_argument("--runtime", metavar="R", action="append", help=text)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> str:
    """Return the table or JSON of what was compared; what differs, and what fails, is an error."""
    return _devices(args) if args.devices else _runtimes(args)


def _runtimes(args: argparse.Namespace) -> str:
    with progress(f"running {args.artifact} on every runtime"):
        found = verify(
            args.artifact,
            args.inputs,
            tolerance=1.0 if args.tolerance is None else args.tolerance,
            rounds=5 if args.rounds is None else args.rounds,
            backends=args.backend,
            runtimes=args.runtime,
        )
    text = found.to_json() if args.json else found.to_table()
    if found.problems:
        first, *rest = found.problems
        more = f"; and {len(rest)} more" if rest else ""
        raise CheckError(f"{args.artifact} does not compute the same on every runtime: {first}{more}", text)
    return text


def _devices(args: argparse.Namespace) -> str:
    for option in _OF_RUNTIMES:
        if getattr(args, option) is not None:
            raise ConfigError(f"--devices compares integers on generated inputs: leave out --{option}")
    with progress(f"loading {args.artifact}"):
        graph = load(args.artifact, lower=False)
    with progress("running its products on every device"):
        certificate = certify(graph, args.backend)
    text = certificate.to_json() if args.json else certificate.to_table()
    if certificate.problems:
        count = len(certificate.problems)
        raise CheckError(
            f"{args.artifact} does not compute the same integers everywhere: {count} products differ", text
        )
    return text
