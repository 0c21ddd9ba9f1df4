"""Target profiles: what a runtime that reads ONNX wants, as the passes that bring a Q/DQ graph into its dialect."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.attention import SpellOutAttention
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.embeddings import IntegerLookups
from fxquant.integrations.onnx.merge import MergeProducts
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.integrations.onnx.pairs import DequantizeAtOnce, QuantizeBehindHeads
from fxquant.integrations.onnx.tensorrt import check_tensorrt
from fxquant.integrations.onnx.weights import LinearsToProducts
from fxquant.integrations.onnx.zero_points import TypedZeroPoints
from fxquant.passes.base import Pass, Pipeline
from fxquant.registry import Registry


@dataclass(frozen=True)
class Profile:
    """A target: the opset of its files, its dialect passes in order, and a check of what came out.

    `check` raises `ExportError` where the dialect graph breaks a rule of the runtime. `form` is "explicit", Q/DQ, or
    "implicit", a float model with a calibration table.
    """

    opset: int
    passes: tuple[Pass, ...]
    check: Callable[[fx.GraphModule], None] = lambda gm: None
    form: str = "explicit"

    def dialect(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return a copy of a Q/DQ graph in the dialect of the target."""
        return Pipeline(self.passes).run(edit.clone(gm))


def _check_implicit(dialect: fx.GraphModule) -> None:
    """Raise where a graph holds what a table of static scales for tensors cannot say."""
    for node in dialect.graph.nodes:
        if node.target in (DYNAMIC_QUANTIZE, DEQUANTIZE_BLOCKS):
            text = 'a calibration table holds one static scale a tensor: quantize with recipe = "static"'
            raise ExportError(f"%{node.name} ({node.target}) cannot be written for tensorrt-implicit: {text}")


_APART: tuple[Pass, ...] = (PerTensorDynamic(), TypedZeroPoints(), LinearsToProducts(), IntegerLookups())
_MERGED = (*_APART[:2], MergeProducts(), *_APART[2:])
PROFILES: Registry[Profile] = Registry("target")
PROFILES.add("onnxruntime", Profile(opset=21, passes=(*_MERGED, SpellOutAttention())))
_PAIRED: tuple[Pass, ...] = (*_APART, QuantizeBehindHeads(), DequantizeAtOnce(), SpellOutAttention(unseen="mean"))
PROFILES.add("openvino", Profile(opset=21, passes=_PAIRED))
PROFILES.add("tensorrt", Profile(opset=21, passes=(*_APART, SpellOutAttention()), check=check_tensorrt))
PROFILES.add(
    "tensorrt-implicit",
    Profile(opset=21, passes=(*_APART, SpellOutAttention()), check=_check_implicit, form="implicit"),
)
