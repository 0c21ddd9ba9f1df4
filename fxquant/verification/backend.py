"""A backend file as a whole: read, held against its JSON Schema, every rule tried, and its kernels' limits found."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxquant.backends import Backend, backend_file, load_backend
from fxquant.backends.json_schema import backend_schema
from fxquant.config import read_toml
from fxquant.passes.lowering import LOWERING, listed_passes
from fxquant.verification.limits import LimitRow, probe
from fxquant.verification.rules import FAILED, RuleRow, check_rules

NO_VALIDATOR = "jsonschema is not installed, so editors' JSON Schema was not consulted: pip install 'fxquant[check]'"


@dataclass(frozen=True, kw_only=True)
class BackendReport:
    """What a backend file holds and what of it is true on this machine.

    `schema` are the places that the JSON Schema refuses although the file can be read, None where no validator is
    installed; `rules` and `limits` are what was tried.
    """

    backend: Backend
    schema: tuple[str, ...] | None
    rules: tuple[RuleRow, ...]
    limits: tuple[LimitRow, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, a line each: empty where the file holds on this machine."""
        rules = [f"rule {r.number} ({r.use}), recipe {r.recipe}: {r.reason}" for r in self.rules if r.status == FAILED]
        return (*(f"JSON Schema: {each}" for each in self.schema or ()), *rules, *map(_broken, self._broken()))

    def _broken(self) -> Iterable[LimitRow]:
        return (row for row in self.limits if row.broken)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        data = {
            "backend": self.backend.to_dict(),
            "source": self.backend.source,
            "schema": self.schema,
            "rules": [asdict(row) for row in self.rules],
            "limits": [asdict(row) for row in self.limits],
            "failures": self.failures,
        }
        return json.dumps(data, indent=1)


def check_backend(name_or_path: str | Path) -> BackendReport:
    """Read a backend file and try it on this machine.

    Raises:
        ConfigError: the file cannot be read; names the file, the place, what is expected and the nearest known name.
    """
    backend = load_backend(name_or_path)
    passes = listed_passes(backend.passes, backend.source)
    return BackendReport(
        backend=backend,
        schema=refused_by_schema(read_toml(backend_file(name_or_path))),
        rules=check_rules(backend, passes),
        limits=probe(backend),
    )


def refused_by_schema(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return what the JSON Schema refuses in the data of a backend file; None where no validator is installed."""
    try:
        import jsonschema  # noqa: PLC0415  an optional dependency
    except ImportError:
        return None
    errors = jsonschema.Draft7Validator(backend_schema(LOWERING)).iter_errors(data)
    return tuple(f"{'.'.join(map(str, each.absolute_path)) or 'the file'}: {each.message}" for each in errors)


def _broken(row: LimitRow) -> str:
    what = f"{row.role} = {row.numbers} {row.scales}".strip() if row.role else f"{row.numbers} = {row.scales}"
    return f"limits of kernel {row.kernel} allow {what}: {row.reason}"
