"""`Recipe`: what the user wants of a quantized model, as changes to the named specs of a backend.

What the hardware can do is the backend's business; a recipe names its specs ("activation", "weight") and says what
should differ, for the whole model or, by `Override`, for the modules and ops that match.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from fxquant.config import expect, known_keys, read_toml, within
from fxquant.errors import ConfigError
from fxquant.spec import AT_RUN_TIME, FORMATS, QuantSpec

FLOAT = "float"
# The fields of a QuantSpec that differ, or FLOAT: what uses the spec stays in float.
Changes = Mapping[str, Any] | str
SPEC_FIELDS = tuple(f.name for f in fields(QuantSpec))
# Without these a spec that holds one field only would contradict itself.
_COMPANIONS: dict[str, dict[str, Any]] = {
    "axis": {"granularity": "per-channel"},
    "group_size": {"granularity": "per-group"},
}


def check_field(key: str, value: object) -> None:
    """Raise `ConfigError` unless `key` is a field of QuantSpec and `value` a value that it can have."""
    known_keys({key: value}, SPEC_FIELDS)
    companions = {"dynamic": value in AT_RUN_TIME} if key == "granularity" else _COMPANIONS.get(key, {})
    if key == "dtype" and isinstance(value, str) and value in FORMATS and FORMATS[value].floating:
        companions = {"symmetric": True}
    QuantSpec.from_dict({**companions, key: value})


def apply_changes(current: QuantSpec | None, changes: Changes, stands: QuantSpec) -> QuantSpec | None:
    """Return the spec that `changes` make of `current`; None means float.

    Changes to a spec that was float start from `stands`, the backend's own. An axis is inherited only by per-channel
    specs, a group size only by per-group ones, and observer options only by specs with the same observer.
    """
    if isinstance(changes, str):
        return None
    inherited = (current or stands).to_dict()
    if changes.get("granularity", inherited["granularity"]) != "per-channel":
        inherited["axis"] = None
    if changes.get("granularity", inherited["granularity"]) != "per-group":
        inherited.pop("group_size", None)
    if changes.get("observer", inherited["observer"]) != inherited["observer"]:
        inherited["options"] = {}
    return QuantSpec.from_dict({**inherited, **changes})


def _checked(specs: object) -> dict[str, Changes]:
    """Return a copy of the spec changes with every field checked and the options as a dict."""
    copy: dict[str, Changes] = {}
    for name, changes in expect("spec", specs, dict).items():
        with within(f"[spec.{name}]"):
            copy[name] = check_changes(changes)
    return copy


def check_changes(changes: object) -> Changes:
    """Return a copy of the changes to one spec, or raise `ConfigError` for what no spec can have."""
    if changes == FLOAT:
        return FLOAT
    if not isinstance(changes, dict):
        raise ConfigError(f"{changes!r}: expected the string {FLOAT!r} or a table of changes")
    for key, value in changes.items():
        check_field(key, value)
    return {key: dict(value) if key == "options" else value for key, value in changes.items()}


def _plain(specs: Mapping[str, Changes]) -> dict[str, Any]:
    return {name: changes if isinstance(changes, str) else dict(changes) for name, changes in specs.items()}


@dataclass(frozen=True, kw_only=True)
class Override:
    """Which sites it is for, and what differs there.

    Invariants:
        - `path` is a glob on the module path and `op` one on the op kind, case-sensitive; `*` also crosses dots.
        - With `quantize` false the sites stay in float and `specs` is empty.
        - An override that changes nothing is legal: it shields its sites from those that come later.
    """

    path: str = "*"
    op: str = "*"
    quantize: bool = True
    specs: Mapping[str, Changes] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        expect("path", self.path, str)
        expect("op", self.op, str)
        expect("quantize", self.quantize, bool)
        object.__setattr__(self, "specs", _checked(self.specs))
        if self.specs and not self.quantize:
            raise ConfigError(
                "quantize = false leaves its sites in float, so it takes no spec changes: drop one of them"
            )

    def matches(self, path: str, kind: str) -> bool:
        """Say whether the op `kind` in the module at `path` is one of the sites."""
        return fnmatchcase(path, self.path) and fnmatchcase(kind, self.op)

    def to_dict(self) -> dict[str, Any]:
        """Return the override as JSON-able data; `from_dict` reads it back."""
        return {"path": self.path, "op": self.op, "quantize": self.quantize, "spec": _plain(self.specs)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build an override from the data of one [[override]], raising `ConfigError` for what it cannot hold."""
        known_keys(data, ("path", "op", "quantize", "spec"))
        return cls(**{"specs" if key == "spec" else key: value for key, value in data.items()})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Changes to a backend's specs, and overrides by module path and op kind; the first that matches wins.

    Invariants:
        - `base` names a packaged recipe of the backend that the changes build on; None: the specs as they stand.
        - `specs` holds, by spec name, changed fields or "float"; treat it as read-only.
        - `overrides` is a tuple of `Override`; a list, and tables as in a TOML file, are accepted and converted.
        - `source` is the file it came from, for messages only.
    """

    name: str = "custom"
    base: str | None = None
    specs: Mapping[str, Changes] = field(default_factory=dict, hash=False)
    overrides: Sequence[Override] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        with within(self.source or "recipe"):
            expect("name", self.name, str)
        with within(self.label):
            if self.base is not None:
                expect("base", self.base, str)
            object.__setattr__(self, "specs", _checked(self.specs))
            object.__setattr__(self, "overrides", _overrides(self.overrides))

    @property
    def label(self) -> str:
        """What messages call it: its file, else its name."""
        return self.source or f"recipe {self.name!r}"

    def override_for(self, path: str, kind: str) -> Override | None:
        """Return the first override that matches the op `kind` in the module at `path`."""
        return next((each for each in self.overrides if each.matches(path, kind)), None)

    def unused(self, sites: Iterable[tuple[str, str]]) -> tuple[Override, ...]:
        """Return the overrides that take effect at none of the sites, each a (module path, op kind)."""
        used = {id(self.override_for(path, kind)) for path, kind in sites}
        return tuple(each for each in self.overrides if id(each) not in used)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data; `from_dict` reads it back."""
        overrides = [each.to_dict() for each in self.overrides]
        return {"name": self.name, "base": self.base, "spec": _plain(self.specs), "override": overrides}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "") -> Self:
        """Build a recipe from data as in a recipe file; errors name `source`."""
        with within(source or "recipe"):
            known_keys(data, ("name", "base", "spec", "override"))
        names = {"spec": "specs", "override": "overrides"}
        return cls(**{names.get(key, key): value for key, value in data.items()}, source=source)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a recipe file; its name is the file's unless it states one."""
        path = Path(path)
        return cls.from_dict({"name": path.stem, **read_toml(path)}, source=str(path))


def _overrides(given: object) -> tuple[Override, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"override = {given!r}: expected a list of tables, as [[override]] makes it")
    found = []
    for number, each in enumerate(given, 1):
        with within(f"[[override]] {number}"):
            found.append(each if isinstance(each, Override) else Override.from_dict(expect("override", each, dict)))
    return tuple(found)
