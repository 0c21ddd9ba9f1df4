"""What several commands share: their options, the text that they calibrate or compare with, and progress."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fxquant.evaluation.pretrained import TASKS

# What a command does with its arguments: it returns what goes to standard output.
Run = Callable[[argparse.Namespace], str]
BACKEND, RECIPE = "x86", "dynamic"


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Run, text: str
) -> argparse.ArgumentParser:
    """Add the command `name`, which `run` carries out, and return its parser."""
    parser = commands.add_parser(name, help=text[:1].lower() + text[1:], description=f"{text}.")
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model folder and its task."""
    parser.add_argument("model", metavar="MODEL_DIR", type=Path, help="folder with config.json, weights and tokenizer")
    add_task(parser)


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the kind of model that is made of the checkpoint."""
    text = "kind of model (default: what config.json names as its architecture)"
    parser.add_argument("--task", choices=sorted(TASKS), help=text)


def add_backend(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the backend; `default` says in words what holds without it."""
    parser.add_argument("--backend", metavar="B", help=f"packaged backend or path of a .toml file (default: {default})")


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on stderr, where that is a terminal, what is being done."""
    with Console(stderr=True).status(f"{what} …"):
        yield
