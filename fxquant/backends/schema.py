"""`Backend`: a validated backend file, and the questions that the passes ask of it.

Every error says which file, which table and which key, the value found, and what is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fxquant.backends.rules import Limits, OpRule, Vocabulary, read_limits
from fxquant.config import expect, known_keys, known_name, required, tables, within
from fxquant.errors import ConfigError, suggest
from fxquant.observers import OBSERVERS, create
from fxquant.recipe import FLOAT, Changes, Override, Recipe, apply_changes, check_changes
from fxquant.spec import QuantSpec

__all__ = ["Backend", "Limits", "OpRule", "Vocabulary"]

_KEYS = ("name", "description", "kernels", "spec", "recipe", "op", "kernel", "lower")
OVERRIDE = "override"  # of a packaged recipe; no spec may have the name
Wish = str | Path | dict[str, Any] | Recipe


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What a target can do, and which quantization it is given by default.

    Invariants:
        - `rules` stand in the file's order, which decides among patterns of equal size.
        - Every op, role, spec, kernel and observer that is named exists; every packaged recipe gives valid specs.
        - `kernels` names the kernel set that the rules' kernels belong to; `passes` are the lowering's, in order.
        - `source` is the file, for messages only, and `vocabulary` what it was checked against; neither is part of
          `to_dict` or of equality.
    """

    name: str
    description: str
    kernels: str
    specs: Mapping[str, QuantSpec] = field(hash=False)
    recipes: Mapping[str, Recipe] = field(hash=False)
    rules: tuple[OpRule, ...]
    limits: Mapping[str, Mapping[str, Limits]] = field(hash=False)
    passes: tuple[str, ...]
    source: str = field(compare=False)
    vocabulary: Vocabulary = field(compare=False, repr=False)

    def recipe(self, wish: Wish) -> Recipe:
        """Return a recipe resolved against this backend: no base, and every spec whole or "float".

        Args:
            wish: the name of a packaged recipe, the path of a recipe file (a str counts as one if it ends in .toml),
                the data of such a file, or a Recipe. A resolved recipe comes back equal.

        Raises:
            ConfigError: the recipe or its base is not known, or its changes name an unknown spec or observer or give
                a spec that contradicts itself.
        """
        asked = self._asked(wish)
        with within(asked.label):
            base = self._packaged(asked.base) if asked.base is not None else Recipe()
            specs = self._changed(self._changed(self.specs, base.specs, "spec"), asked.specs, "spec")
            overrides = (*asked.overrides, *base.overrides)
            self._check_overrides(specs, overrides)
        whole = {name: FLOAT if spec is None else spec.to_dict() for name, spec in specs.items()}
        return Recipe(name=asked.name, specs=whole, overrides=overrides, source=asked.source)

    def packages(self, override: Override) -> bool:
        """Say whether an override is of a packaged recipe, which may well match nothing in a model."""
        return any(override in recipe.overrides for recipe in self.recipes.values())

    def spec(self, rule: OpRule, role: str, recipe: Recipe, path: str, kind: str) -> QuantSpec | None:
        """Return the spec of `role` for op `kind` in the module at `path` under a resolved recipe; None is float."""
        name = rule.roles.get(role)
        override = recipe.override_for(path, kind) or Override()
        if name is None or not override.quantize:
            return None
        stands = self.specs[name]
        spec = apply_changes(stands, recipe.specs.get(name, {}), stands)
        return apply_changes(spec, override.specs[name], stands) if name in override.specs else spec

    def refusal(self, rule: OpRule, role: str, spec: QuantSpec, shape: tuple[int, ...] | None) -> str | None:
        """Return which limit of the rule's kernel `spec` breaks for a tensor of `shape`, or None if it is granted."""
        if rule.kernel is None:
            return None
        limits = self.limits.get(rule.kernel, {}).get(role)
        return limits.breach(rule.kernel, role, spec, shape) if limits else None

    def _asked(self, wish: Wish) -> Recipe:
        if isinstance(wish, Recipe):
            return wish
        if isinstance(wish, Path) or (isinstance(wish, str) and wish.endswith(".toml")):
            return Recipe.from_toml(wish)
        if isinstance(wish, dict):
            return Recipe.from_dict(wish)
        if not isinstance(wish, str):
            known = "a recipe's name, the path of a .toml file, the data of one as a dict, or a Recipe"
            raise ConfigError(f"recipe = {wish!r}: expected {known}")
        return self._packaged(wish)

    def _packaged(self, name: str) -> Recipe:
        if name not in self.recipes:
            known = suggest(name, self.recipes)
            raise ConfigError(f"unknown recipe {name!r} for backend {self.name}: {known}, or the path of a .toml file")
        return self.recipes[name]

    def _check_overrides(self, specs: Mapping[str, QuantSpec | None], overrides: Sequence[Override]) -> None:
        for number, override in enumerate(overrides, 1):
            with within(f"[[override]] {number}"):
                self._changed(specs, override.specs, "override.spec")

    def _changed(
        self, specs: Mapping[str, QuantSpec | None], changes: Mapping[str, Changes], table: str
    ) -> dict[str, QuantSpec | None]:
        """Return `specs` after the changes to each that are named; errors name the [table.spec]."""
        changed = dict(specs)
        for name, change in changes.items():
            with within(f"[{table}.{name}]"):
                if name not in self.specs:
                    raise ConfigError(f"backend {self.name} has no spec {name!r}: {suggest(name, self.specs)}")
                changed[name] = apply_changes(specs[name], change, self.specs[name])
                _check_observer(changed[name], self.vocabulary)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Return the backend as JSON-able data in the form of its file; `from_dict` reads it back."""
        return {
            "name": self.name,
            "description": self.description,
            "kernels": self.kernels,
            "spec": {name: spec.to_dict() for name, spec in self.specs.items()},
            "recipe": {name: _packaged_form(recipe) for name, recipe in self.recipes.items()},
            "op": [rule.to_dict() for rule in self.rules],
            "kernel": {
                kernel: {role: limits.to_dict() for role, limits in by_role.items()}
                for kernel, by_role in self.limits.items()
            },
            "lower": {"passes": list(self.passes)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str, vocabulary: Vocabulary) -> Self:
        """Build a backend from the data of its file.

        Raises:
            ConfigError: anything is missing, of the wrong type, unknown or contradictory; names `source` and the place.
        """
        with within(source):
            known_keys(data, _KEYS)
            rules = _rules(data, vocabulary)
            backend = cls(
                name=required(data, "name", str),
                description=expect("description", data.get("description", ""), str),
                kernels=required(data, "kernels", str),
                specs=_specs(data, vocabulary),
                recipes=_recipes(data),
                rules=rules,
                limits=read_limits(tables(data, "kernel"), rules, vocabulary),
                passes=_passes(data),
                source=source,
                vocabulary=vocabulary,
            )
            for name, recipe in backend.recipes.items():
                specs = backend._changed(backend.specs, recipe.specs, f"recipe.{name}")
                with within(f"[recipe.{name}]"):
                    backend._check_overrides(specs, recipe.overrides)
        return backend


def _specs(data: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, QuantSpec]:
    specs = {}
    for name, fields in tables(data, "spec").items():
        with within(f"[spec.{name}]"):
            if name == OVERRIDE:
                raise ConfigError(f"a spec cannot be called {name!r}: a recipe keeps its overrides under that name")
            specs[name] = QuantSpec.from_dict(dict(fields))
            _check_observer(specs[name], vocabulary)
    return specs


def _check_observer(spec: QuantSpec | None, vocabulary: Vocabulary) -> None:
    if spec is not None:
        known_name("observer", spec.observer, vocabulary.observers, "observer")
        if spec.options and spec.observer in OBSERVERS and not spec.dynamic:
            create(spec)  # raises for options that the observer does not have


def _recipes(data: Mapping[str, Any]) -> dict[str, Recipe]:
    recipes = {}
    for name, given in tables(data, "recipe").items():
        specs = {key: value for key, value in given.items() if key != OVERRIDE}
        for spec, changes in specs.items():
            with within(f"[recipe.{name}.{spec}]"):
                check_changes(changes)
        with within(f"[recipe.{name}]"):
            recipes[name] = Recipe(name=name, specs=specs, overrides=given.get(OVERRIDE, ()))
    return recipes


def _packaged_form(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as it stands in a backend file."""
    data = recipe.to_dict()
    form: dict[str, Any] = data["spec"]
    return form | {OVERRIDE: data["override"]} if recipe.overrides else form


def _rules(data: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[OpRule, ...]:
    specs = tables(data, "spec")
    rules = []
    for number, rule in enumerate(expect("op", data.get("op", []), list), 1):
        use = f" ({rule['use']})" if isinstance(rule, dict) and isinstance(rule.get("use"), str) else ""
        with within(f"[[op]] {number}{use}"):
            rules.append(OpRule.from_dict(expect("op", rule, dict), specs, vocabulary))
    return tuple(rules)


def _passes(data: Mapping[str, Any]) -> tuple[str, ...]:
    lower = expect("lower", data.get("lower", {}), dict)
    with within("[lower]"):
        known_keys(lower, ("passes",))
        passes = expect("passes", lower.get("passes", []), list)
        return tuple(expect("passes", each, str) for each in passes)
