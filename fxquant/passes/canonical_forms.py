"""Replace decomposed functions, given as pattern functions, by the one ATen call that computes them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.graph.pattern import Match, Pattern
from fxquant.passes.canonical_facts import substitute

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """A decomposition, and `whole`, which gives the call that computes the same or None where the match is not one."""

    pattern: Pattern
    whole: Callable[[Match], Call | None]


def forms(functions: Iterable[Callable[..., Any]], whole: Callable[[Match], Call | None]) -> tuple[Form, ...]:
    """Return one `Form` for each pattern function."""
    return tuple(Form(Pattern.of(function), whole) for function in functions)


def recompose(gm: fx.GraphModule, known: Iterable[Form]) -> int:
    """Replace every occurrence of a known form, the first that matches at a node, and return how many there were."""
    by_anchor: dict[Any, list[Form]] = {}
    for form in known:
        by_anchor.setdefault(form.pattern.anchor.target, []).append(form)
    count = 0
    for node in list(gm.graph.nodes):
        call = _whole(node, by_anchor.get(node.target, [])) if node.op == "call_function" and node.users else None
        if call is not None:
            substitute(node, *call)
            count += 1
    if count:
        gm.graph.eliminate_dead_code()
    return count


def _whole(node: fx.Node, known: list[Form]) -> Call | None:
    for form in known:
        match = form.pattern.match(node)
        call = form.whole(match) if isinstance(match, Match) else None
        if call is not None:
            return call
    return None
