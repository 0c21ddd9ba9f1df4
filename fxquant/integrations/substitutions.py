"""What an export changed in a Q/DQ graph: substitutions, which the ledger of the export shows."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from fxquant.graph import edit

_KEY = "substitutions"


@dataclass(frozen=True)
class Substitution:
    """Something that stands in the exported file in place of what the Q/DQ graph says.

    `name` is the same for all of a kind; `exact` says whether it computes the same numbers, but for rounding.
    """

    name: str
    node: str
    path: str
    text: str
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Written:
    """What the writer of a format tells of a graph: its substitutions, and lines for the report."""

    substitutions: tuple[Substitution, ...]
    notes: tuple[str, ...] = ()


def note(gm: fx.GraphModule, node: fx.Node, name: str, text: str, *, exact: bool) -> None:
    """Add a substitution of `node` to the facts of the graph."""
    found = Substitution(name, node.name, edit.path_of(node), text, exact)
    edit.mark(gm, **{_KEY: [*edit.marks(gm).get(_KEY, ()), found.to_dict()]})


def substitutions(gm: fx.GraphModule) -> tuple[Substitution, ...]:
    """Return the substitutions in a graph, in the order in which they were made."""
    return tuple(Substitution(**each) for each in edit.marks(gm).get(_KEY, ()))
