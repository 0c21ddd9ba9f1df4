"""What the kernels of a backend file take on this machine, found by trying, beside what the file says of it.

One role of one kernel is given one scheme after the other, the other roles what a packaged recipe gives them; then the
sizes of its tensors are varied. A scheme holds where the kernel takes it and agrees with the Q/DQ form.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fxquant.backends import Backend, OpRule
from fxquant.errors import ConfigError
from fxquant.kernels.table import kernels
from fxquant.ops import OPS
from fxquant.ops.vectors import Sizes
from fxquant.recipe import FLOAT, Recipe
from fxquant.spec import FORMATS, QuantSpec
from fxquant.verification.rules import recipes
from fxquant.verification.trial import USUAL, Trial, attempt, claim, example

Specs = Mapping[str, QuantSpec]
GRANULARITIES: dict[str, dict[str, Any]] = {
    "per-tensor": {"granularity": "per-tensor"},
    "per-tensor dynamic": {"granularity": "per-tensor", "dynamic": True},
    "per-token dynamic": {"granularity": "per-token", "dynamic": True},
    "per-sample dynamic": {"granularity": "per-sample", "dynamic": True},
    "per-channel 0": {"granularity": "per-channel", "axis": 0},
    "per-channel 1": {"granularity": "per-channel", "axis": 1},
    "per-group 16": {"granularity": "per-group", "group_size": 16},
    "per-group 5": {"granularity": "per-group", "group_size": 5},
}
SYMMETRIES: dict[str, dict[str, Any]] = {
    "affine": {"symmetric": False},
    "symmetric": {"symmetric": True},
    "symmetric full": {"symmetric": True, "range": "full"},
}
SIZES: dict[str, tuple[int, ...]] = {
    "inner": (1, 3, 4, 6, 8, 12, 16, 31, 32, 33, 64),
    "columns": (1, 3, 17, 64, 65),
    "rows": (1, 17),
}


@dataclass(frozen=True, kw_only=True)
class LimitRow:
    """Whether a kernel takes a role as `numbers` (dtype and symmetry) and `scales` say, or a size of its tensors.

    `promised` is whether the file's limits allow it and `holds` what was found, with the `reason` where it does not.
    Of a role without limits a file promises what the kernel does not refuse by itself. A row of sizes has no role:
    `numbers` is the axis then, and `scales` the size.
    """

    kernel: str
    role: str
    numbers: str
    scales: str
    promised: bool
    holds: bool
    reason: str = ""

    @property
    def broken(self) -> bool:
        """Whether the file promises what does not hold."""
        return self.promised and not self.holds


def probe(backend: Backend) -> tuple[LimitRow, ...]:
    """Return a row for each scheme of each role, and for each size, of each kernel that a rule can reach."""
    found: list[LimitRow] = []
    for rule in _one_for_each_kernel(backend):
        base = _base(backend, rule)
        if base is not None:
            found += [*_Probe(backend, rule, base).schemes(), *_Probe(backend, rule, base).sizes()]
    return tuple(found)


def _one_for_each_kernel(backend: Backend) -> tuple[OpRule, ...]:
    """Return the rule of the smallest op for each kernel, as far as its op has an example."""
    chosen: dict[str, OpRule] = {}
    for rule in sorted(backend.rules, key=lambda rule: OPS[rule.use].pattern.size):
        if rule.kernel is not None and rule.roles and example(rule.use, USUAL) is not None:
            chosen.setdefault(rule.kernel, rule)
    return tuple(chosen.values())


def _base(backend: Backend, rule: OpRule) -> Specs | None:
    """Return the specs of a rule under that packaged recipe which quantizes most of its roles ahead of time.

    How their ranges are found is none of the kernel's business.
    """
    found = example(rule.use, USUAL)
    assert found is not None, "rules without an example are left out"
    candidates = []
    for recipe in recipes(backend).values():
        if not claim(backend, rule, recipe, found[0])[1]:
            given = {role: backend.spec(rule, role, recipe, "", rule.use) for role in rule.roles}
            plain = {role: replace(spec, observer="minmax", options=()) for role, spec in given.items() if spec}
            candidates.append(plain)
    return max(candidates, key=lambda specs: sum(not spec.dynamic for spec in specs.values()), default=None)


def _every_spec() -> Iterator[tuple[str, str, QuantSpec]]:
    """Yield every scheme that a QuantSpec can hold, with the names of its numbers and of its scales."""
    for dtype, (symmetry, numbers), (scales, fields) in product(FORMATS, SYMMETRIES.items(), GRANULARITIES.items()):
        if "range" in numbers and (FORMATS[dtype].floating or not FORMATS[dtype].signed):
            continue  # a range matters to signed integers alone
        if dtype == "int32" and (symmetry, scales) != ("symmetric", "per-channel 0"):
            continue  # that of a bias is S_x·S_w, whatever its spec says
        try:
            yield f"{dtype} {symmetry}", scales, QuantSpec(dtype=dtype, **numbers, **fields)
        except ConfigError:
            continue


@dataclass(frozen=True)
class _Probe:
    """One kernel of a backend: the rule that it is tried by, and the specs of the roles that are not varied."""

    backend: Backend
    rule: OpRule
    base: Specs

    @property
    def kernel(self) -> str:
        assert self.rule.kernel is not None, "rules without a kernel are left out"
        return self.rule.kernel

    def schemes(self) -> Iterator[LimitRow]:
        needed = {"output", *kernels(self.backend.kernels)[self.kernel].needs}
        limited = self.backend.limits.get(self.kernel, {})
        for role in self.rule.roles:
            if role not in needed:
                others = {name: spec for name, spec in self.base.items() if name not in (role, "output")}
                trial = self._trial(others, USUAL)
                yield self._row(role, FLOAT, "", True, trial)
            for numbers, scales, spec in _every_spec():
                if self._has_no_meaning(role, spec):
                    continue
                trial = self._trial(self._with(role, spec), USUAL)
                if trial.specs.get(role) == spec:  # else no Q/DQ graph has it
                    refusal = self.backend.refusal(self.rule, role, spec, self._shape(role, USUAL))
                    promised = refusal is None and (role in limited or not trial.refused)
                    yield self._row(role, numbers, scales, promised, trial)

    def sizes(self) -> Iterator[LimitRow]:
        for axis, sizes in SIZES.items():
            for size in sizes:
                vector = replace(USUAL, **{axis: size})
                refusals = (
                    self.backend.refusal(self.rule, role, spec, self._shape(role, vector))
                    for role, spec in self.base.items()
                )
                yield self._row("", axis, str(size), not any(refusals), self._trial(self.base, vector))

    def _has_no_meaning(self, role: str, spec: QuantSpec) -> bool:
        """Say whether a scheme cannot be: constants are quantized ahead of time, and results with one static scale."""
        found = example(self.rule.use, USUAL)
        assert found is not None, "rules without an example are left out"
        if role == "output":
            return spec.dynamic or spec.granularity != "per-tensor"
        return spec.dynamic if role in found[1].parameters else spec.group_size is not None

    def _with(self, role: str, spec: QuantSpec) -> Specs:
        """Return the base with one role changed; a result is requantized only where activations are static."""
        changed = {**self.base, role: spec}
        if spec.dynamic and role != "output":
            changed.pop("output", None)
        return changed

    def _trial(self, specs: Specs, sizes: Sizes) -> Trial:
        """Try the kernel with these specs, whatever limits the file states."""
        rule = OpRule(use=self.rule.use, kernel=self.kernel, roles={role: role for role in specs})
        free = replace(self.backend, specs=specs, recipes={}, rules=(rule,), limits={})
        return attempt(free, rule, free.recipe(Recipe()), sizes=sizes)

    def _shape(self, role: str, sizes: Sizes) -> tuple[int, ...] | None:
        found = example(self.rule.use, sizes)
        assert found is not None, "rules without an example are left out"
        value = {**found[1].inputs, **found[1].parameters}.get(role)
        return tuple(value.shape) if value is not None else None

    def _row(self, role: str, numbers: str, scales: str, promised: bool, trial: Trial) -> LimitRow:
        return LimitRow(
            kernel=self.kernel,
            role=role,
            numbers=numbers,
            scales=scales,
            promised=promised,
            holds=trial.ok,
            reason=trial.problem,
        )
