"""What `annotate` writes on nodes and every later stage reads: claims, and the reasons where there is none.

All of it is JSON-able data in `node.meta["fxquant"]`:
    claim    on the node that computes a claimed op's result: the whole `Claim`
    member   on every node of a claimed op: the claim's id
    roles    on a member: argument index → role, the edges of the match
    reason   on a node that no rule claims: {"code", "text"}
    fused    on a kernel that computes several ops: the list of their facts (`computed_ops`)
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from torch import fx

from fxquant.graph.edit import info, mark, marks, path_of
from fxquant.graph.pattern import Edge, Match
from fxquant.ops.cost import family, macs
from fxquant.spec import QuantSpec


class Reason(StrEnum):
    """Why an op stays in float, or is none that could be quantized."""

    FLOAT_BY_RULE = "float-by-rule"  # the backend's rule leaves it in float, on purpose
    FLOAT_BY_RECIPE = "float-by-recipe"  # the user's recipe leaves it in float
    LIMIT = "kernel-limit"  # a rule matches, its kernel cannot do what the recipe asks for
    GUARD = "no-match"  # the nearest pattern does not match, or its guard refuses
    NO_RULE = "no-rule"  # the backend has no rule for this op
    MOVES_DATA = "moves-data"  # views, slices, casts: no arithmetic
    INDEX_ARITHMETIC = "index-arithmetic"  # integers, booleans and sizes, not numbers to be quantized
    FLOAT_OP = "float-op"  # no quantized form of this op exists
    NOT_CAPTURED = "not-captured"  # a module that stays the model's own code, with all that it computes


# What `lower` writes on a claimed op's node: the kernel or why there is none, and whether its result is integer.
LOWERED = ("lowered", "fallback", "requantized")
# An op that stays in float for one of these was meant to be quantized.
UNINTENDED = {Reason.LIMIT, Reason.GUARD, Reason.NO_RULE}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One op of the graph that a rule has claimed.

    `op` names the pattern and `kernel` what shall run it (None: stays Q/DQ); `path` is the module path and `name` the
    node name of its result in the canonical graph; `family` and `macs` state its matrix arithmetic; `specs` says how
    each quantized role is quantized.
    """

    id: str
    op: str
    kernel: str | None
    path: str
    name: str
    family: str | None
    macs: int
    attrs: dict[str, Any] = field(default_factory=dict)
    specs: dict[str, QuantSpec] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "specs": {role: spec.to_dict() for role, spec in self.specs.items()}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        specs = {role: QuantSpec.from_dict(spec) for role, spec in data["specs"].items()}
        return cls(**{**data, "specs": specs})


@dataclass(frozen=True)
class ClaimedSite:
    """A claim with its nodes as they are now: the anchor, all members, and the edges of each role."""

    claim: Claim
    anchor: fx.Node
    members: tuple[fx.Node, ...]
    edges: dict[str, tuple[Edge, ...]]


def write_claim(claim: Claim, match: Match) -> None:
    """Write a claim on the nodes of its match."""
    for node in match.nodes:
        roles = {str(edge.index): role for role, edges in match.edges.items() for edge in edges if edge.user is node}
        mark(node, member=claim.id, roles=roles, reason=None)
    mark(match.anchor, claim=claim.to_dict())


def write_reason(node: fx.Node, code: Reason, text: str) -> None:
    """Write why `node` is not claimed."""
    mark(node, reason={"code": str(code), "text": text})


def computed_ops(node: fx.Node) -> tuple[dict[str, Any], ...]:
    """Return the facts of every op that `node` computes: of itself, or of those that a fusion joined.

    A claimed op has its `claim`, and what `lower` wrote; one that stays in float its `reason`, if any, `op`, `path`,
    `dtype`, `family` and `macs`. Nodes that only belong to a claimed op have none.
    """
    facts = marks(node)
    if "fused" in facts:
        return tuple(facts["fused"])
    if "claim" in facts:
        return ({key: facts[key] for key in ("claim", *LOWERED) if key in facts},)
    counts = "member" not in facts and ("reason" in facts or family(node) is not None)
    return (_float_op(node),) if counts else ()


def _float_op(node: fx.Node) -> dict[str, Any]:
    known = info(node)
    return {
        "reason": marks(node).get("reason"),
        "op": str(node.target).removesuffix(".default"),
        "path": path_of(node),
        "dtype": str(known.dtype).removeprefix("torch.") if known else "",
        "family": family(node),
        "macs": macs(node),
    }


def hand_over(nodes: Iterable[fx.Node], kernel: fx.Node) -> None:
    """Let `kernel`, a new node, tell of the ops of `nodes`, which it computes from now on."""
    nodes = tuple(nodes)
    mark(kernel, fused=[fact for node in nodes for fact in computed_ops(node)] or None)
    for node in nodes:
        mark(node, fused=None, claim=None, reason=None, **dict.fromkeys(LOWERED))


def erase_claims(gm: fx.GraphModule) -> None:
    """Remove every claim and reason from the graph."""
    for node in gm.graph.nodes:
        mark(node, claim=None, member=None, roles=None, reason=None)


def claimed_sites(gm: fx.GraphModule) -> Iterator[ClaimedSite]:
    """Yield the claims of a graph that is not lowered yet, in the order of the graph."""
    members: dict[str, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if "member" in marks(node):
            members.setdefault(marks(node)["member"], []).append(node)
    for nodes in members.values():
        anchor = nodes[-1]
        if "claim" not in marks(anchor):
            continue
        edges: dict[str, tuple[Edge, ...]] = {}
        for node in nodes:
            for index, role in marks(node).get("roles", {}).items():
                edges[role] = (*edges.get(role, ()), Edge(node, int(index)))
        yield ClaimedSite(Claim.from_dict(marks(anchor)["claim"]), anchor, tuple(nodes), edges)
