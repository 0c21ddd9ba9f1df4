"""Target profiles: what a runtime that reads ONNX wants, as the passes that bring a Q/DQ graph into its dialect."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.attention import SpellOutAttention
from fxquant.integrations.onnx.biases import FloatBiases
from fxquant.integrations.onnx.blocks import WholeBlocks
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.embeddings import IntegerLookups
from fxquant.integrations.onnx.merge import MergeProducts
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.integrations.onnx.pairs import DequantizeAtOnce, QuantizeBehindHeads
from fxquant.integrations.onnx.tensorrt import check_tensorrt
from fxquant.integrations.onnx.weights import LinearsToProducts
from fxquant.integrations.onnx.zero_points import TypedZeroPoints, UnsignedActivations
from fxquant.passes.base import Pass, Pipeline
from fxquant.passes.qdq_nodes import QUANTIZE
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


def _check_integers(dialect: fx.GraphModule) -> None:
    """Raise where an activation is in float8.

    ONNX Runtime fuses its product into an operator of integers, and refuses the model that it made so (issue 22269 of
    microsoft/onnxruntime); OpenVINO rounds it in another way.
    """
    for node in dialect.graph.find_nodes(op="call_function", target=QUANTIZE):
        if node.args[6].is_floating_point:
            text = 'CPU runtimes take weights alone in float8: give activations dtype = "uint8", or "weight-only"'
            raise ExportError(f"%{node.name} in {edit.path_of(node)} cannot be written: {text}")


_APART: tuple[Pass, ...] = (
    PerTensorDynamic(),
    TypedZeroPoints(),
    FloatBiases(),
    LinearsToProducts(),
    IntegerLookups(),
)
_MERGED = (*_APART[:3], UnsignedActivations(), MergeProducts(), *_APART[3:])
PROFILES: Registry[Profile] = Registry("target")
PROFILES.add("onnxruntime", Profile(opset=21, passes=(*_MERGED, SpellOutAttention()), check=_check_integers))
# OpenVINO dequantizes a table once, when it compiles, and then looks up floats: faster than integers and scales.
_PAIRED = (*_APART[:-1], WholeBlocks(), QuantizeBehindHeads(), DequantizeAtOnce(), SpellOutAttention(unseen="mean"))
PROFILES.add("openvino", Profile(opset=21, passes=_PAIRED, check=_check_integers))
# What moves values in ONNX takes no float8.
_EXPLICIT = (*_APART, DequantizeAtOnce((torch.float8_e4m3fn,)), SpellOutAttention())
PROFILES.add("tensorrt", Profile(opset=21, passes=_EXPLICIT, check=check_tensorrt))
PROFILES.add(
    "tensorrt-implicit",
    Profile(opset=21, passes=(*_APART, SpellOutAttention()), check=_check_implicit, form="implicit"),
)
