"""Batch normalisations folded into what they normalise, as a transformation that says where it could not."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from fxquant.passes.canonical_batch_norm import fold, obstacle
from fxquant.transforms.base import Miss, Rewrite, Transformation, miss


@dataclass(frozen=True)
class FuseBatchNorm(Transformation):
    """Fold batch normalisations into the linear or convolution, with or without a bias, whose result they normalise.

    The folded constants are computed in float64 and rounded once; each output is within a few roundings of what it was.
    """

    name: ClassVar[str] = "fuse_batch_norm"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every batch normalisation."""
        for node in list(gm.graph.nodes):
            if node.target is torch.ops.aten.batch_norm.default:
                reason = obstacle(node)
                yield miss(node, reason) if reason else partial(fold, gm, node)
