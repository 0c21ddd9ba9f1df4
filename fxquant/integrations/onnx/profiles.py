"""Target profiles: what a runtime that reads ONNX wants, as the passes that bring a Q/DQ graph into its dialect."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from fxquant.integrations.onnx.attention import SpellOutAttention
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.embeddings import IntegerLookups
from fxquant.integrations.onnx.merge import MergeProducts
from fxquant.integrations.onnx.weights import LinearsToProducts
from fxquant.integrations.onnx.zero_points import TypedZeroPoints
from fxquant.passes.base import Pass, Pipeline
from fxquant.registry import Registry


@dataclass(frozen=True)
class Profile:
    """A target: the opset of its files, its dialect passes in order, and a check of what came out.

    `check` raises `ExportError` where the dialect graph breaks a rule of the runtime.
    """

    opset: int
    passes: tuple[Pass, ...]
    check: Callable[[fx.GraphModule], None] = lambda gm: None

    def dialect(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return a copy of a Q/DQ graph in the dialect of the target."""
        return Pipeline(self.passes).run(gm)


_PASSES: tuple[Pass, ...] = (
    PerTensorDynamic(),
    TypedZeroPoints(),
    MergeProducts(),
    LinearsToProducts(),
    IntegerLookups(),
    SpellOutAttention(),
)
PROFILES: Registry[Profile] = Registry("target")
PROFILES.add("onnxruntime", Profile(opset=21, passes=_PASSES))
