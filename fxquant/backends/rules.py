"""The parts of a backend file: `OpRule`, `Limits` and the `Vocabulary` that they are checked against."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from fxquant.config import expect, known_keys, known_name, required, within
from fxquant.errors import ConfigError, suggest
from fxquant.recipe import FLOAT, check_field
from fxquant.spec import QuantSpec

# What a kernel can be limited in: how a range was found is none of its business.
LIMITED = ("dtype", "granularity", "axis", "group_size", "symmetric", "dynamic", "range")
INNER = "inner_multiple_of"


@dataclass(frozen=True)
class Vocabulary:
    """The names that a backend file may use: ops with their roles, the kernels of its target, the observers."""

    ops: Mapping[str, tuple[str, ...]]
    kernels: Collection[str]
    observers: Collection[str]


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """One [[op]]: matches of the op `use` run on `kernel`, with a spec for each role that it names.

    Invariants:
        - A role that is not named stays float; a rule that names none says why in `note`.
        - Without a kernel the op stays in the Q/DQ form.
    """

    use: str
    kernel: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON-able data, as it stands in a file."""
        stated = {"kernel": self.kernel, "note": self.note}
        return {"use": self.use, **{key: value for key, value in stated.items() if value}, **self.roles}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], specs: Collection[str], vocabulary: Vocabulary) -> Self:
        """Build a rule, raising `ConfigError` for an op, role, spec or kernel that is not known."""
        use = required(data, "use", str)
        known_name("use", use, vocabulary.ops, "op")
        roles = {key: value for key, value in data.items() if key not in ("use", "kernel", "note")}
        known_keys(roles, (*vocabulary.ops[use], "kernel", "note"))
        for role, spec in roles.items():
            known_name(role, expect(role, spec, str), specs, "spec")
        kernel = expect("kernel", data["kernel"], str) if "kernel" in data else None
        if kernel is not None:
            known_name("kernel", kernel, vocabulary.kernels, "kernel")
        note = expect("note", data.get("note", ""), str)
        if not roles and not note.strip():
            names = ", ".join(vocabulary.ops[use])
            raise ConfigError(f'no role is quantized: say why in note = "…", or name a role of {names}')
        return cls(use=use, kernel=kernel, roles=roles, note=note)


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel takes in one role.

    Invariants:
        - `allowed` maps fields of QuantSpec to the values that are taken; a field that is missing is not limited. The
          dtype "float" alone says that the role must not be quantized.
        - `inner_multiple_of` divides the size of the last axis.
    """

    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, hash=False)
    inner_multiple_of: int | None = None

    def breach(self, kernel: str, role: str, spec: QuantSpec, shape: tuple[int, ...] | None) -> str | None:
        """Return which limit a tensor of `shape` (None: not known) with `spec` breaks, or None."""
        for key, allowed in self.allowed.items():
            value = getattr(spec, key)
            if _matters(key, spec) and value not in allowed and not _same_axis(key, value, allowed, shape):
                takes = " or ".join(_show(each) for each in allowed)
                return f"kernel {kernel} takes {role}.{key} = {takes}, the recipe asks for {_show(value)}"
        if shape and self.inner_multiple_of and shape[-1] % self.inner_multiple_of:
            wanted = f"whose last axis is a multiple of {self.inner_multiple_of}"
            return f"kernel {kernel} takes a {role} {wanted}, this one is {list(shape)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the limits as JSON-able data, as they stand in a file."""
        inner = {INNER: self.inner_multiple_of} if self.inner_multiple_of else {}
        return {**{key: list(values) for key, values in self.allowed.items()}, **inner}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build the limits of one role, raising `ConfigError` for a field or value that QuantSpec does not know."""
        known_keys(data, (*LIMITED, INNER))
        allowed = {key: _values(key, value) for key, value in data.items() if key != INNER}
        inner = expect(INNER, data[INNER], int) if INNER in data else None
        if inner is not None and inner < 1:
            raise ConfigError(f"{INNER} = {inner}: expected a positive integer")
        return cls(allowed=allowed, inner_multiple_of=inner)


def _values(key: str, value: object) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values:
        raise ConfigError(f"{key} = []: expected at least one value that the kernel takes")
    for each in values:
        if (key, each) != ("dtype", FLOAT):
            check_field(key, each)
    return values


def _matters(key: str, spec: QuantSpec) -> bool:
    """Say whether a field has a meaning for `spec`: an axis per channel, a range where it is symmetric and signed."""
    if key in ("axis", "group_size"):
        return getattr(spec, key) is not None
    return key != "range" or (spec.symmetric and spec.format.signed)


def _same_axis(key: str, value: Any, allowed: tuple[Any, ...], shape: tuple[int, ...] | None) -> bool:
    """Say whether an axis counted from the other end of `shape` is an allowed one."""
    rank = len(shape) if shape is not None and key == "axis" else 0
    return -rank <= value < rank and value % rank in [each % rank for each in allowed] if rank else False


def read_limits(
    data: Mapping[str, Mapping[str, Any]], rules: tuple[OpRule, ...], vocabulary: Vocabulary
) -> dict[str, dict[str, Limits]]:
    """Return the limits by kernel and role from the [kernel.NAME.ROLE] tables."""
    limits: dict[str, dict[str, Limits]] = {}
    for kernel, by_role in data.items():
        with within(f"[kernel.{kernel}]"):
            if kernel not in vocabulary.kernels:
                raise ConfigError(f"unknown kernel {kernel!r}: {suggest(kernel, vocabulary.kernels)}")
            known_keys(by_role, _roles_on(kernel, rules, vocabulary))
        limits[kernel] = {}
        for role, values in by_role.items():
            with within(f"[kernel.{kernel}.{role}]"):
                limits[kernel][role] = Limits.from_dict(expect(role, values, dict))
    return limits


def _roles_on(kernel: str, rules: tuple[OpRule, ...], vocabulary: Vocabulary) -> list[str]:
    """Return the roles of the ops that use `kernel`, or of all ops where none does."""
    ops = [rule.use for rule in rules if rule.kernel == kernel] or list(vocabulary.ops)
    return sorted({role for op in ops for role in vocabulary.ops[op]})
