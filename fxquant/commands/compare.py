"""`fxquant compare`: the error of an artifact against the float model, layer by layer."""

import argparse
from pathlib import Path
from typing import Any

from fxquant.artifact import load
from fxquant.capture_generation import capture_generation
from fxquant.commands.options import add_backend, add_command, add_model, progress
from fxquant.errors import DataError
from fxquant.evaluation.compare import compare
from fxquant.evaluation.pretrained import load_pretrained
from fxquant.evaluation.text import read_sentences, standard_library_sentences
from fxquant.ladder import capture
from fxquant.program import Program

SENTENCES = 32  # that are compared with


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = add_command(commands, "compare", run, "Show how far each layer of an artifact is off, worst first")
    add_model(parser)
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="what quantize made of the model")
    text = f"text to compare with, its first {SENTENCES} lines (default: docstrings of Python's standard library)"
    parser.add_argument("--text", metavar="FILE", type=Path, help=text)
    add_backend(parser, "the one that the artifact was prepared for")
    parser.add_argument("--limit", metavar="N", type=int, help="only the N worst layers")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> str:
    """Return the errors as a table or as JSON."""
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit}: expected at least 1")
    sentences = read_sentences(args.text) if args.text else standard_library_sentences()[100:]
    with progress(f"loading {args.artifact}"):
        candidate = load(args.artifact, args.backend, padded_outputs="exact")
    with progress(f"loading {args.model}"):
        pretrained = load_pretrained(args.model, args.task)
    with progress("capturing"):
        generates = isinstance(candidate, Program) and candidate.generates
        taken = capture_generation if generates else capture
        reference = taken(pretrained.model, pretrained.example_inputs())
    with progress("running both"):
        found = compare(reference, candidate, pretrained.batches(sentences[:SENTENCES]))
    return found.to_json() if args.json else found.to_table(args.limit)
