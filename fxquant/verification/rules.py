"""Every rule of a backend file under every packaged recipe: whether it claims its op, and what its kernel gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fxquant.backends import Backend, OpRule
from fxquant.ops import OPS
from fxquant.passes.base import Pass
from fxquant.recipe import Recipe
from fxquant.verification.trial import USUAL, Trial, attempt, claim, example

OK, FLOAT, UNUSED, UNTRIED, FAILED = "ok", "float", "unused", "not tried", "failed"
AS_IT_STANDS = "(specs as they stand)"


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """How rule `number` of a file does under `recipe` ("" where that makes no difference).

    `status` is "ok", "float" (kept so on purpose), "unused" (no packaged recipe leads to it), "not tried" (its op has
    no example) or "failed"; `reason` says why it is not ok. `kernel` is what ran, `difference` in output steps.
    """

    number: int
    use: str
    recipe: str = ""
    status: str
    kernel: str = ""
    scheme: str = ""
    difference: float | None = None
    reason: str = ""


def check_rules(backend: Backend, passes: tuple[Pass, ...]) -> tuple[RuleRow, ...]:
    """Try every rule; `passes` are those that the backend lists."""
    return tuple(
        row
        for number in range(1, len(backend.rules) + 1)
        for row in _Rule(backend, number).rows(recipes(backend), passes)
    )


def recipes(backend: Backend) -> Mapping[str, Recipe]:
    """Return the packaged recipes, resolved; a file without any has its specs as they stand."""
    found = {name: backend.recipe(name) for name in backend.recipes}
    return found or {AS_IT_STANDS: backend.recipe(Recipe())}


def claimant(backend: Backend, use: str, recipe: Recipe) -> OpRule | None:
    """Return the rule that claims an op under a recipe: the first that can, in the order in which they are tried."""
    found = example(use, USUAL)
    assert found is not None, "the caller knows that the op has an example"
    for rule in sorted(backend.rules, key=lambda rule: -OPS[rule.use].pattern.size):
        if rule.roles and not claim(backend, rule, recipe, found[0])[1]:
            return rule
    return None


@dataclass(frozen=True)
class _Rule:
    """Rule `number` of a backend."""

    backend: Backend
    number: int

    @property
    def rule(self) -> OpRule:
        return self.backend.rules[self.number - 1]

    def rows(self, recipes: Mapping[str, Recipe], passes: tuple[Pass, ...]) -> Iterator[RuleRow]:
        if not self.rule.roles:
            yield self._float()
        elif example(self.rule.use, USUAL) is None:
            yield self._row(UNTRIED, f"op {self.rule.use} has no example: give it one, quant_op(example=…)")
        else:
            verdicts = {name: self._unused(recipe) for name, recipe in recipes.items()}
            for name, recipe in recipes.items():
                if not verdicts[name]:
                    yield self._tried(name, attempt(self.backend, self.rule, recipe, passes))
            if all(verdicts.values()):
                yield self._row(UNUSED, _joined(verdicts))

    def _float(self) -> RuleRow:
        """Return the row of a rule without roles: a rule for the same op in front of it leaves it nothing to say."""
        earlier = (n for n in range(1, self.number) if self.backend.rules[n - 1].use == self.rule.use)
        first = next(earlier, None)
        if first is None:
            return self._row(FLOAT, self.rule.note)
        return self._row(UNUSED, f"rule {first} for {self.rule.use} stands before it and answers for every match")

    def _unused(self, recipe: Recipe) -> str:
        """Return why the rule claims nothing under a recipe, "" where it does claim its op."""
        found = example(self.rule.use, USUAL)
        assert found is not None, "the caller has asked"
        refusal = claim(self.backend, self.rule, recipe, found[0])[1]
        if refusal:
            return refusal
        winner = claimant(self.backend, self.rule.use, recipe)
        number = next(n for n, each in enumerate(self.backend.rules, 1) if each is winner)
        return "" if number == self.number else f"rule {number} ({winner.use if winner else ''}) claims it first"

    def _tried(self, recipe: str, trial: Trial) -> RuleRow:
        scheme = ", ".join(f"{role} {spec.dtype} {spec.granularity}" for role, spec in trial.specs.items())
        return RuleRow(
            number=self.number,
            use=self.rule.use,
            recipe=recipe,
            status=OK if trial.ok else FAILED,
            kernel=trial.kernel,
            scheme=scheme,
            difference=trial.difference,
            reason=trial.problem,
        )

    def _row(self, status: str, reason: str) -> RuleRow:
        return RuleRow(number=self.number, use=self.rule.use, status=status, reason=reason)


def _joined(verdicts: Mapping[str, str]) -> str:
    """Return the reasons with the recipes that each is for."""
    by_reason: dict[str, list[str]] = {}
    for recipe, reason in verdicts.items():
        by_reason.setdefault(reason, []).append(recipe)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
