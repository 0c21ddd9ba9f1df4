"""Put an observer on every edge whose range must be known before run time."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from fxquant import observers
from fxquant.graph import edit
from fxquant.ops.base import read_constant
from fxquant.passes.claims import claimed_sites
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class Observe:
    """Insert an observer where a claimed role is static and not a constant; edges that read one value share one.

    Weights need none (`convert` reads them), dynamic roles none either.
    """

    name: ClassVar[str] = "observe"
    after: ClassVar[tuple[str, ...]] = ("annotate",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Insert observers as submodules `observers.N`; return how many."""
        placed: dict[tuple[fx.Node, QuantSpec], fx.Node] = {}
        for site in list(claimed_sites(gm)):
            for role, spec in site.claim.specs.items():
                for edge in site.edges.get(role, ()):
                    source = edge.source
                    if spec.dynamic or spec.dtype == "int32" or read_constant(source) is not None:
                        continue
                    if (source, spec) not in placed:
                        placed[source, spec] = _insert(gm, source, spec, len(placed))
                    edit.set_argument(edge.user, edge.index, placed[source, spec])
        return len(placed)


def _insert(gm: fx.GraphModule, source: fx.Node, spec: QuantSpec, number: int) -> fx.Node:
    if number == 0:
        gm.add_submodule("observers", nn.Module())
    gm.add_submodule(f"observers.{number}", observers.create(spec))
    with gm.graph.inserting_after(source):
        node = gm.graph.call_module(f"observers.{number}", (source,))
    known = edit.info(source)
    edit.mark(node, path=edit.path_of(source), spec=spec.to_dict(), value=known.to_dict() if known else None)
    return node
