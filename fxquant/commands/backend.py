"""`fxquant backend`: check a backend file on this machine, and print the JSON Schema of such files."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fxquant.backends import Backend, Limits
from fxquant.backends.json_schema import backend_schema
from fxquant.backends.plugins import load_plugins
from fxquant.commands.options import add_command, progress
from fxquant.errors import CheckError, ConfigError
from fxquant.passes.lowering import LOWERING
from fxquant.recipe import Changes, Recipe
from fxquant.spec import QuantSpec
from fxquant.verification.backend import NO_VALIDATOR, BackendReport, check_backend
from fxquant.verification.tables import limits_tables, rules_table


def add(commands: Any) -> None:
    """Add the commands and their arguments."""
    parser = commands.add_parser("backend", help="look into backend files", description="Look into backend files.")
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    check = add_command(inner, "check", run, "Try every rule and limit of a backend file on this machine")
    check.add_argument("backend", metavar="FILE_OR_NAME", help="path of a .toml file, or the name of a backend")
    check.add_argument("--json", action="store_true", help="as JSON")
    shown = add_command(inner, "schema", schema, "Print the JSON Schema of backend files, for editors")
    shown.add_argument("--output", metavar="FILE", type=Path, help="write it there instead")


def schema(args: argparse.Namespace) -> str:
    """Return the schema of backend files for all that is installed here."""
    load_plugins()
    text = json.dumps(backend_schema(LOWERING), indent=1)
    if args.output is None:
        return text
    try:
        args.output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{args.output}: cannot be written: {error.strerror}") from None
    return f"wrote {args.output}"


def run(args: argparse.Namespace) -> str:
    """Return what a file holds and what of it is true here; an invalid file, and one that fails, is an error."""
    with progress(f"trying {args.backend}"):
        report = check_backend(args.backend)
    text = report.to_json() if args.json else _text(report)
    if report.failures:
        first, *rest = report.failures
        more = f"; and {len(rest)} more" if rest else ""
        raise CheckError(f"{report.backend.source} does not hold on this machine: {first}{more}", text)
    return text


def _text(report: BackendReport) -> str:
    backend = report.backend
    parts = [
        f"{backend.name}: {backend.description or 'no description'}\n"
        f"{backend.source} is valid; its kernels are of the set {backend.kernels!r}",
        NO_VALIDATOR if report.schema is None else "",
        _specs(backend),
        _recipes(backend),
        _limits(backend),
        f"passes after lowering: {', '.join(backend.passes)}" if backend.passes else "",
        "Each rule on a test vector, kernel beside Q/DQ form:\n\n" + rules_table(report.rules) if report.rules else "",
        "What holds on this machine:\n\n" + limits_tables(report.limits) if report.limits else "",
        "\n".join(report.failures),
    ]
    return "\n\n".join(part for part in parts if part)


def _specs(backend: Backend) -> str:
    body = [(name, _scheme(spec)) for name, spec in backend.specs.items()]
    return tabulate(body, ("spec", "scheme"), disable_numparse=True)


def _scheme(spec: QuantSpec) -> str:
    symmetry = f"symmetric {spec.range}" if spec.symmetric else "affine"
    axis = f" along axis {spec.axis}" if spec.axis is not None else ""
    when = "at run time" if spec.dynamic else f"by {spec.observer}"
    return f"{spec.dtype} {spec.granularity}{axis}, {symmetry}, range {when}"


def _recipes(backend: Backend) -> str:
    body = [
        (name, "\n".join([_changes(recipe.specs), *_overridden(recipe)])) for name, recipe in backend.recipes.items()
    ]
    return tabulate(body, ("recipe", "changes to the specs"), disable_numparse=True)


def _overridden(recipe: Recipe) -> list[str]:
    """Return a line for each override of a packaged recipe."""
    return [
        f"[{each.path}, {each.op}] {_changes(each.specs) if each.quantize else 'float'}" for each in recipe.overrides
    ]


def _changes(specs: Mapping[str, Changes]) -> str:
    parts = []
    for name, changes in specs.items():
        fields = changes if isinstance(changes, str) else ", ".join(f"{k} = {v}" for k, v in changes.items())
        parts.append(f"{name}: {fields}")
    return "; ".join(parts) or "none"


def _limits(backend: Backend) -> str:
    body = [
        (kernel, role, _limited(limits))
        for kernel, by_role in backend.limits.items()
        for role, limits in by_role.items()
    ]
    return tabulate(body, ("kernel", "role", "takes"), disable_numparse=True) if body else ""


def _limited(limits: Limits) -> str:
    parts = [f"{key} = {' or '.join(map(str, values))}" for key, values in limits.allowed.items()]
    if limits.inner_multiple_of:
        parts.append(f"a last axis that is a multiple of {limits.inner_multiple_of}")
    return ", ".join(parts)
