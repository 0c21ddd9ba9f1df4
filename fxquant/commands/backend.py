"""`fxquant backend check`: read a backend file as the library does, and say what is in it."""

import argparse
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from fxquant.backends import Backend, Limits, load_backend
from fxquant.commands.options import add_command
from fxquant.passes.lowering import listed_passes
from fxquant.recipe import Changes, Recipe
from fxquant.spec import QuantSpec


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("backend", help="look into backend files", description="Look into backend files.")
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    check = add_command(inner, "check", run, "Validate a backend file and say what is in it")
    check.add_argument(
        "backend", metavar="FILE_OR_NAME", help="path of a .toml file, or the name of a packaged backend"
    )


def run(args: argparse.Namespace) -> str:
    """Return what a valid file holds; an invalid one is an error."""
    backend = load_backend(args.backend)
    listed_passes(backend.passes, backend.source)
    parts = [
        f"{backend.name}: {backend.description or 'no description'}\n"
        f"{backend.source} is valid; its kernels are of the set {backend.kernels!r}",
        _specs(backend),
        _recipes(backend),
        _rules(backend),
        _limits(backend),
        f"passes after lowering: {', '.join(backend.passes)}" if backend.passes else "",
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
    body = [(name, _changes(recipe.specs) + _overridden(recipe)) for name, recipe in backend.recipes.items()]
    return tabulate(body, ("recipe", "changes to the specs"), disable_numparse=True)


def _overridden(recipe: Recipe) -> str:
    """Return the overrides of a packaged recipe in brackets."""
    parts = [
        f" [{each.path}, {each.op}: {_changes(each.specs) if each.quantize else 'float'}]" for each in recipe.overrides
    ]
    return "".join(parts)


def _changes(specs: Mapping[str, Changes]) -> str:
    parts = []
    for name, changes in specs.items():
        fields = changes if isinstance(changes, str) else ", ".join(f"{k} = {v}" for k, v in changes.items())
        parts.append(f"{name}: {fields}")
    return "; ".join(parts) or "none"


def _rules(backend: Backend) -> str:
    body = [
        (
            number,
            rule.use,
            rule.kernel or "-",
            ", ".join(f"{role} = {spec}" for role, spec in rule.roles.items()) or rule.note,
        )
        for number, rule in enumerate(backend.rules, 1)
    ]
    return tabulate(body, ("rule", "op", "kernel", "quantized roles, or why none"), disable_numparse=True)


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
