"""`fxquant export`: an artifact becomes files of another runtime."""

import argparse
from pathlib import Path
from typing import Any

from fxquant.artifact import load
from fxquant.commands.options import add_command, progress
from fxquant.integrations.export import FORMATS, check_destination, export


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "export", run, "Write an artifact as files of another runtime")
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize saved")
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="a folder that is new, empty or holds an export")
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx", help="of the files (default: onnx)")
    parser.add_argument("--target", metavar="T", help="runtime to write for (default: that of the format)")


def run(args: argparse.Namespace) -> str:
    """Return what was written, and what was substituted."""
    check_destination(args.output)
    with progress(f"loading {args.artifact}"):
        graph = load(args.artifact, lower=False)
    with progress(f"exporting to {args.output}"):
        return export(graph, args.output, format=args.format, target=args.target).summary()
