"""`Pass`, one rewrite of a graph, and `Pipeline`, which orders, checks, logs and prints them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import fx

from fxquant.errors import ConfigError

log = logging.getLogger("fxquant.passes")


@runtime_checkable
class Pass(Protocol):
    """One rewrite: a frozen dataclass whose fields are its options.

    `name` identifies it, `after` names passes that must have run before it when they are in the same pipeline, and
    `apply` edits the graph in place and returns how many changes it made.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]]

    def apply(self, gm: fx.GraphModule) -> int: ...


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Invariants: names are unique, and every pass comes after those it names in `after`.
    """

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        names = [p.name for p in self.passes]
        for position, each in enumerate(self.passes):
            if each.name in names[:position]:
                raise ConfigError(f"pass {each.name!r} stands twice in the pipeline {names}")
            late = [name for name in each.after if name in names[position + 1 :]]
            if late:
                raise ConfigError(f"pass {each.name!r} must come after {late[0]!r}; the order given is {names}")

    def run(self, gm: fx.GraphModule, watch: Callable[[str, fx.GraphModule], None] | None = None) -> fx.GraphModule:
        """Apply every pass to `gm` in place, lint after each, and recompile at the end.

        `watch(name, gm)` is called after each pass, with the graph compiled.
        """
        stale = False
        for each in self.passes:
            count = each.apply(gm)
            if count:
                gm.graph.lint()
                stale = True
            log.info("%s: %d changes", each.name, count)
            if watch is not None:
                if stale:
                    gm.recompile()
                    stale = False
                watch(each.name, gm)
        if stale:
            gm.recompile()
        return gm
