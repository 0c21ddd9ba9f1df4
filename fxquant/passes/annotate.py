"""Match once: write on every node the rule that claims it, or the reason why none does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from fxquant.backends.schema import Backend, OpRule
from fxquant.graph import edit
from fxquant.graph.pattern import Match
from fxquant.ops import OPS, QuantOp
from fxquant.ops.base import read_constant
from fxquant.ops.cost import RECURRENT, family, floating, macs
from fxquant.ops.shape import JOINS_VALUES, MOVES_VALUES
from fxquant.passes.claims import Claim, Reason, erase_claims, write_claim, write_reason
from fxquant.recipe import Recipe
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class _Refusal:
    """Why a rule did not claim: `depth` says how near it came."""

    depth: int
    code: Reason
    text: str


@dataclass(frozen=True)
class Annotate:
    """Claim ops for a backend's rules: larger patterns before smaller, the file's order among equals.

    In a float graph the recipe gives each role its spec; in a Q/DQ graph (`recipe` is None) the Q/DQ nodes say it.
    `sites` collects the (module path, op) of every match, which is what a recipe's overrides are held against.
    """

    backend: Backend
    recipe: Recipe | None
    sites: set[tuple[str, str]] = field(default_factory=set, compare=False)
    name: ClassVar[str] = "annotate"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Write claims and reasons; return the number of claims."""
        erase_claims(gm)
        by_target: dict[object, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            by_target.setdefault(node.target, []).append(node)
        taken: dict[fx.Node, str] = {}
        refusals: dict[fx.Node, _Refusal] = {}
        count = 0
        for rule in sorted(self.backend.rules, key=lambda rule: -OPS[rule.use].pattern.size):
            op = OPS[rule.use]
            for node in by_target.get(op.pattern.anchor.target, ()):
                if node not in taken:
                    count += self._try(rule, op, node, taken, refusals)
        for node in gm.graph.nodes:
            if node.op == "call_function" and node not in taken:
                self._explain(node, refusals.get(node))
        return count

    def _try(
        self, rule: OpRule, op: QuantOp, node: fx.Node, taken: dict[fx.Node, str], refusals: dict[fx.Node, _Refusal]
    ) -> int:
        """Claim `node` for `rule` if it matches, else note the refusal; return the number of claims made."""
        found = op.match(node)
        if not isinstance(found, Match):
            text = f"nearest pattern {op.name}: {found.reason}"
            _note(refusals, [node], _Refusal(found.depth, Reason.GUARD, text))
            return 0
        rival = next((taken[each] for each in found.nodes if each in taken), None)
        if rival is not None:
            text = f"nearest pattern {op.name}: a part of it belongs to {rival}"
            _note(refusals, [node], _Refusal(op.pattern.size, Reason.GUARD, text))
            return 0
        core = next((each for each in found.nodes if family(each)), found.anchor)
        verdict = self._specs(rule, op, found, edit.path_of(core))
        if isinstance(verdict, _Refusal):
            _note(refusals, found.nodes, verdict)
            return 0
        claim = Claim(
            id=f"{op.name}:{found.anchor.name}",
            op=op.name,
            kernel=rule.kernel,
            path=edit.path_of(core),
            name=found.anchor.name,
            family=family(core),
            macs=macs(core),
            attrs={name: _plain(value) for name, value in found.attrs.items()},
            specs=verdict,
        )
        write_claim(claim, found)
        taken.update(dict.fromkeys(found.nodes, claim.id))
        return 1

    def _specs(self, rule: OpRule, op: QuantOp, match: Match, path: str) -> dict[str, QuantSpec] | _Refusal:
        """Return the spec of each quantized role, or why the rule cannot claim this match."""
        depth = op.pattern.size + 2
        self.sites.add((path, op.name))
        if not rule.roles:
            return _Refusal(depth, Reason.FLOAT_BY_RULE, rule.note or f"{self.backend.name} keeps {op.name} in float")
        override = self.recipe.override_for(path, op.name) if self.recipe is not None else None
        if override is not None and not override.quantize:
            text = f"the recipe keeps {op.name} at {path or 'the top'} in float (override path = {override.path!r})"
            return _Refusal(depth + 1, Reason.FLOAT_BY_RECIPE, text)
        wanted = {role: self._spec(rule, role, match, path, op.name) for role in rule.roles}
        specs = {role: spec for role, spec in wanted.items() if spec is not None}
        if "output" in specs and specs["output"].dynamic:
            del specs["output"]  # a kernel requantizes with a scale that is known ahead of time
        if "bias" in specs and (not _scales_a_bias(specs) or read_constant(match.values["bias"]) is None):
            del specs["bias"]  # an integer bias needs both scales, and its values, ahead of time
        if not set(specs) - {"output"} or ("weight" in rule.roles and "weight" not in specs):
            text = f"the recipe leaves the weight and inputs of {op.name} in float"
            return _Refusal(depth, Reason.FLOAT_BY_RECIPE, text)
        refused = (self._refused(rule, op, match, role, spec) for role, spec in specs.items())
        return next((each for each in refused if each is not None), specs)

    def _refused(self, rule: OpRule, op: QuantOp, match: Match, role: str, spec: QuantSpec) -> _Refusal | None:
        """Return why one role cannot have its spec."""
        value = match.anchor if role == "output" else match.values[role]
        known = edit.info(value) if value is not None else None
        depth = op.pattern.size + 2
        if not floating(known) and self.recipe is not None:
            return _Refusal(depth, Reason.GUARD, f"nearest pattern {op.name}: {role} is no floating-point tensor")
        if spec.axis is not None and known and not -len(known.shape) <= spec.axis < len(known.shape):
            return _Refusal(depth, Reason.LIMIT, f"axis = {spec.axis} is none of {role}, which is {list(known.shape)}")
        if spec.group_size is not None and read_constant(value) is None:
            return _Refusal(depth, Reason.LIMIT, f"scales per group are those of constants, and {role} is none")
        if spec.dtype == "int32" and role != "bias":
            return _Refusal(depth, Reason.LIMIT, f"int32 is for a bias, whose scale is S_x·S_w, and {role} is none")
        text = self.backend.refusal(rule, role, spec, known.shape if known else None)
        return _Refusal(depth, Reason.LIMIT, text) if text is not None else None

    def _spec(self, rule: OpRule, role: str, match: Match, path: str, kind: str) -> QuantSpec | None:
        if role != "output" and match.values.get(role) is None:
            return None
        if self.recipe is not None:
            return self.backend.spec(rule, role, self.recipe, path, kind)
        return _written_spec(match, role)

    def _explain(self, node: fx.Node, refusal: _Refusal | None) -> None:
        known = edit.info(node)
        if refusal is not None and (family(node) or refusal.code is not Reason.GUARD):
            write_reason(node, refusal.code, refusal.text)
        elif node.target in RECURRENT:
            write_reason(node, Reason.GUARD, "a recurrent layer as one op: with dynamic=True its products are linears")
        elif family(node):
            write_reason(node, Reason.NO_RULE, f"backend {self.backend.name} has no rule with {node.target}")
        elif node.target in MOVES_VALUES | JOINS_VALUES or node.target in _CASTS:
            write_reason(node, Reason.MOVES_DATA, "moves values, computes none")
        elif known is None or not floating(known):
            write_reason(node, Reason.INDEX_ARITHMETIC, "works on integers, booleans or sizes")
        else:
            nearest = f"; {refusal.text}" if refusal else ""
            write_reason(node, Reason.FLOAT_OP, f"no quantized form of {node.target} is registered{nearest}")


_CASTS = {
    torch.ops.aten.to.dtype,
    torch.ops.aten.to.dtype_layout,
    torch.ops.aten.to.device,
    torch.ops.aten._to_copy.default,
}


def _scales_a_bias(specs: Mapping[str, QuantSpec]) -> bool:
    """Say whether S_x·S_w is known ahead of time and is one scale for all outputs, or one for each."""
    x, weight = specs.get("x"), specs.get("weight")
    if x is None or weight is None or x.dynamic or weight.dynamic or specs["bias"].group_size is not None:
        return False
    return x.granularity == "per-tensor" and weight.group_size is None and weight.axis in (None, 0)


def _note(refusals: dict[fx.Node, _Refusal], nodes: Iterable[fx.Node], refusal: _Refusal) -> None:
    """Keep the refusal of the pattern that came nearest."""
    for node in nodes:
        if node not in refusals or refusals[node].depth < refusal.depth:
            refusals[node] = refusal


def _written_spec(match: Match, role: str) -> QuantSpec | None:
    """Return the spec that the Q/DQ nodes around a role state: behind an input, or directly after the output."""
    if role == "output":
        users = list(match.anchor.users)
        found = edit.marks(users[0]).get("spec") if len(users) == 1 else None
    else:
        value = match.values[role]
        found = edit.marks(value).get("spec") if value is not None else None
    return QuantSpec.from_dict(found) if found is not None else None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
