"""The canonical form of a captured graph, which every pattern may rely on. Independent of any backend.

Calls have all their arguments spelled out; there is one operator for each meaning; products with constants are linears
with a weight [N, K]; norms and activations are single calls; nothing is computed twice or for nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxquant.graph import edit
from fxquant.passes.base import Pipeline
from fxquant.passes.canonical_activation import RecomposeActivations
from fxquant.passes.canonical_arguments import NormalizeArguments
from fxquant.passes.canonical_attention import RecomposeAttention
from fxquant.passes.canonical_batch_norm import FoldBatchNorms
from fxquant.passes.canonical_bias import FoldBias
from fxquant.passes.canonical_constants import FoldConstants
from fxquant.passes.canonical_conv import PointwiseToLinear
from fxquant.passes.canonical_duplicates import MergeDuplicates
from fxquant.passes.canonical_einsum import EinsumToProducts
from fxquant.passes.canonical_experts import GroupExperts
from fxquant.passes.canonical_flatten import LiftFlattening
from fxquant.passes.canonical_inplace import Functionalize
from fxquant.passes.canonical_linear import ProductsToLinear
from fxquant.passes.canonical_noops import RemoveNoops
from fxquant.passes.canonical_norm import RecomposeNorms
from fxquant.passes.canonical_patches import PatchesToLinear
from fxquant.passes.canonical_spelling import UnifySpelling
from fxquant.passes.canonical_weights import FoldWeights


@dataclass(frozen=True)
class Sweep:
    """Erase what no output depends on, tensors included. Exact."""

    name: ClassVar[str] = "sweep"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        before = len(gm.graph.nodes)
        edit.sweep(gm)
        return before - len(gm.graph.nodes)


CANONICAL = Pipeline(
    (
        NormalizeArguments(),
        Functionalize(),
        UnifySpelling(),
        RemoveNoops(),
        MergeDuplicates(),
        FoldConstants(),
        FoldWeights(),
        GroupExperts(),
        FoldBatchNorms(),
        PointwiseToLinear(),
        PatchesToLinear(),
        EinsumToProducts(),
        ProductsToLinear(),
        FoldBias(),
        LiftFlattening(),
        RecomposeNorms(),
        RecomposeActivations(),
        RecomposeAttention(),
        Sweep(),
    )
)


def canonicalize(gm: fx.GraphModule) -> fx.GraphModule:
    """Return the canonical form of a captured graph, as a new graph that shares its tensors.

    Outputs equal those of `gm` to a few roundings, exactly where no product, norm or activation was rewritten.
    """
    return CANONICAL.run(edit.clone(gm))
