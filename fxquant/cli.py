"""The command line: parses, runs one command, prints what it returns, and turns errors into messages.

Exit status: 0 for success, 1 for an `FxQuantError`, 2 for wrong usage, 130 for an interruption.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from fxquant.commands import backend, compare, diff, explain, export, quantize, verify
from fxquant.errors import CheckError, FxQuantError, FxQuantWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (by default those of the process) state, and return the exit status."""
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", FxQuantWarning)
        try:
            _print(args.run(args))
        except FxQuantError as error:
            if args.debug:
                raise
            if isinstance(error, CheckError):
                _print(error.report)
            print(f"fxquant: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("fxquant: interrupted", file=sys.stderr)
            return 130  # as shells report a process that SIGINT ended
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fxquant", description="Quantize Transformer models as torch.fx graphs, and see what was done."
    )
    parser.add_argument("--version", action="version", version=f"fxquant {version('fxquant')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (quantize, explain, compare, export, verify, diff, backend):
        command.add(commands)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show what the user should know as one line; where in the code it was noticed is of no use to them."""
    print(f"fxquant: warning: {message}", file=sys.stderr)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
