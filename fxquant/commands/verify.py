"""`fxquant verify`: whether an artifact computes the same integers wherever its kernels can run."""

import argparse
from pathlib import Path
from typing import Any

from fxquant.artifact import load
from fxquant.commands.options import add_command, progress
from fxquant.errors import CheckError
from fxquant.verification.devices import certify


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "verify", run, "Verify what an artifact computes")
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize made of a model")
    text = "compare the integers of its products on every device that its kernels can run on here"
    parser.add_argument("--devices", action="store_true", required=True, help=text)
    text = "a backend, by name or path of its .toml file; may be repeated (default: all that are known)"
    parser.add_argument("--backend", metavar="B", action="append", help=text)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> str:
    """Return the certificate as a table or as JSON; integers that differ, and kernels that fail, are an error."""
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
