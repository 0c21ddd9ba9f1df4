"""Patterns: ordinary functions whose parameter names are roles, matched against canonical graphs.

A positional parameter is a tensor role; one with the default None also matches an absent tensor. A keyword-only
parameter binds a literal, such as gelu's `approximate`. A match holds its roles as edges (user, argument index), which
stay valid when nodes are put onto those edges.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxquant.graph.arguments import spell_out
from fxquant.graph.edit import arguments

aten = torch.ops.aten
COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}


@dataclass(frozen=True)
class Edge:
    """The place where `user` reads its argument number `index`, counted through args and then kwargs."""

    user: fx.Node
    index: int

    @property
    def source(self) -> Any:
        return arguments(self.user)[self.index]


@dataclass(frozen=True)
class Match:
    """A pattern found in a graph.

    `anchor` computes the pattern's result; `nodes` are all nodes it covers, the anchor first; `edges` gives each
    tensor role its edges (several where the pattern reads a role twice, none where an optional role is absent);
    `values` gives each tensor role its node or None; `attrs` gives each literal its value.
    """

    anchor: fx.Node
    nodes: tuple[fx.Node, ...]
    edges: dict[str, tuple[Edge, ...]]
    values: dict[str, fx.Node | None]
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Mismatch:
    """Why a pattern does not match at a node; `depth` counts the pattern's nodes that did match before."""

    reason: str
    depth: int


@dataclass(frozen=True)
class _Bindings:
    """What a partial match has bound so far: pattern nodes, and for each role its value and edges."""

    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    edges: dict[str, tuple[Edge, ...]] = field(default_factory=dict)

    def with_node(self, pattern: fx.Node, node: fx.Node) -> "_Bindings":
        return _Bindings({**self.nodes, pattern: node}, self.values, self.edges)

    def with_role(self, role: str, value: Any, edge: Edge) -> "_Bindings":
        edges = {**self.edges, role: (*self.edges.get(role, ()), edge)}
        return _Bindings(self.nodes, {**self.values, role: value}, edges)


class _Trace:
    """Remembers the failure that came deepest into the pattern."""

    def __init__(self) -> None:
        self.depth, self.reason = -1, ""

    def fail(self, bound: _Bindings, reason: str) -> None:
        if len(bound.nodes) > self.depth:
            self.depth, self.reason = len(bound.nodes), reason


@dataclass(frozen=True)
class Pattern:
    """A traced pattern function.

    Invariants: `anchor` is the node that computes the result; `size` counts call nodes; `roles` are the tensor
    parameters in order, `optional` those that may be absent, `literals` the keyword-only ones.
    """

    name: str
    anchor: fx.Node
    size: int
    roles: tuple[str, ...]
    optional: frozenset[str]
    literals: frozenset[str]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Pattern":
        """Trace `function` into a pattern; it must return the result of one ATen call."""
        graph = fx.Graph()
        tracer = fx.proxy.GraphAppendingTracer(graph)
        parameters = inspect.signature(function).parameters.values()
        proxies = {p.name: fx.Proxy(graph.placeholder(p.name), tracer) for p in parameters}
        named = {p.name: proxies[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
        result = function(*(proxies[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY), **named)
        for node in graph.nodes:
            node.args, node.kwargs = spell_out(node.target, node.args, node.kwargs)
        return cls(
            name=function.__name__,
            anchor=result.node,
            size=sum(node.op == "call_function" for node in graph.nodes),
            roles=tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY),
            optional=frozenset(p.name for p in parameters if p.default is None),
            literals=frozenset(named),
        )

    def targets(self) -> set[Any]:
        """Return the operators the pattern is made of."""
        return {node.target for node in self.anchor.graph.nodes if node.op == "call_function"}

    def match(self, node: fx.Node) -> Match | Mismatch:
        """Match the pattern's result at `node`."""
        trace = _Trace()
        for bound in self._unify_node(self.anchor, node, _Bindings(), trace):
            leak = self._leak(bound)
            if leak is None:
                return self._finish(bound)
            trace.fail(bound, leak)
        return Mismatch(trace.reason, max(trace.depth, 0))

    def _leak(self, bound: _Bindings) -> str | None:
        covered = set(bound.nodes.values())
        for pattern, node in bound.nodes.items():
            outside = [user for user in node.users if user not in covered]
            if pattern is not self.anchor and outside:
                return f"%{node.name} inside the pattern is also used by %{outside[0].name}"
        return None

    def _finish(self, bound: _Bindings) -> Match:
        return Match(
            anchor=bound.nodes[self.anchor],
            nodes=tuple(bound.nodes.values()),
            edges={
                role: bound.edges.get(role, ()) if bound.values.get(role) is not None else () for role in self.roles
            },
            values={role: bound.values.get(role) for role in self.roles},
            attrs={name: bound.values[name] for name in sorted(self.literals)},
        )

    def _unify_node(self, pattern: fx.Node, node: Any, bound: _Bindings, trace: _Trace) -> Iterator[_Bindings]:
        if pattern in bound.nodes:
            if bound.nodes[pattern] is node:
                yield bound
            return
        if not isinstance(node, fx.Node) or node.op != "call_function" or node.target is not pattern.target:
            trace.fail(bound, f"expected {pattern.target}, found {_say(node)}")
            return
        bound = bound.with_node(pattern, node)
        wanted, given = arguments(pattern), arguments(node)
        if len(wanted) != len(given):
            trace.fail(
                bound, f"%{node.name} has {len(given)} arguments, {pattern.target} spelled out has {len(wanted)}"
            )
            return
        orders = [list(range(len(wanted)))]
        if pattern.target in COMMUTATIVE:
            orders.append([1, 0, *range(2, len(wanted))])
        for order in orders:
            yield from self._unify_all(list(zip(wanted, order, strict=True)), node, bound, trace)

    def _unify_all(
        self, pairs: list[tuple[Any, int]], node: fx.Node, bound: _Bindings, trace: _Trace
    ) -> Iterator[_Bindings]:
        if not pairs:
            yield bound
            return
        (wanted, index), *rest = pairs
        edge = Edge(node, index)
        for extended in self._unify(wanted, edge.source, edge, bound, trace):
            yield from self._unify_all(rest, node, extended, trace)

    def _unify(self, wanted: Any, given: Any, edge: Edge, bound: _Bindings, trace: _Trace) -> Iterator[_Bindings]:
        if not isinstance(wanted, fx.Node):
            if _same(wanted, given):
                yield bound
            else:
                trace.fail(bound, f"argument {edge.index} of %{edge.user.name} is {_say(given)}, expected {wanted!r}")
        elif wanted.op != "placeholder":
            yield from self._unify_node(wanted, given, bound, trace)
        elif self._accepts(wanted.name, given, bound):
            yield bound.with_role(wanted.name, given, edge)
        else:
            trace.fail(bound, f"{wanted.name} cannot be {_say(given)} at argument {edge.index} of %{edge.user.name}")

    def _accepts(self, role: str, given: Any, bound: _Bindings) -> bool:
        if role in bound.values and bound.values[role] is not given:
            return False
        if role in self.literals:
            return not isinstance(given, fx.Node)
        return isinstance(given, fx.Node) or (given is None and role in self.optional)


def _same(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        same_kind = isinstance(given, (list, tuple)) and len(wanted) == len(given)
        return same_kind and all(_same(a, b) for a, b in zip(wanted, given, strict=True))
    if isinstance(given, fx.Node):
        return False
    if isinstance(wanted, float) and isinstance(given, (int, float)) and not isinstance(given, bool):
        return math.isclose(wanted, given, rel_tol=1e-6)
    return type(wanted) is type(given) and bool(wanted == given)


def _say(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name} ({value.target if value.op == 'call_function' else value.op})"
    return repr(value)
