"""TensorRT's rules for explicit quantization, checked on a graph in its dialect; no engine is needed.

Source: NVIDIA TensorRT, Inference Library, "Explicit Quantization" and "Quantized Types and Schemes", and the reference
of IQuantizeLayer.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.ops.shape import MOVES_VALUES
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE
from fxquant.registry import Registry

# Yields each node that breaks a rule, with what it should be.
Rule = Callable[[fx.GraphModule], Iterator[tuple[fx.Node, str]]]
RULES: Registry[Rule] = Registry("rule of TensorRT")
ADVICE = (
    'quantize with backend = "reference" and a recipe of base "static" whose activation has dtype = "int8" and '
    "symmetric = true, or with weights alone"
)
_BLOCKS = (64, 128)  # values that share a scale of 4-bit weights
_SHOWN = 5


def check_tensorrt(dialect: fx.GraphModule) -> None:
    """Raise `ExportError` naming the nodes of a dialect graph that break a rule, and a recipe that breaks none."""
    broken = [f"%{node.name}: {text} ({name})" for name in RULES for node, text in RULES[name](dialect)]
    if broken:
        more = f"\n  … and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        listed = "\n  ".join(broken[:_SHOWN])
        raise ExportError(f"TensorRT takes explicit quantization by rules that break here:\n  {listed}{more}\n{ADVICE}")


def _calls(gm: fx.GraphModule, *targets: object) -> Iterator[fx.Node]:
    return (node for node in gm.graph.nodes if node.op == "call_function" and node.target in targets)


@RULES.register("constant-scale")
def _constant_scale(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find scales that are not known when the engine is built."""
    for node in _calls(gm, DYNAMIC_QUANTIZE):
        yield node, "its scale is found at run time; expected a constant"


@RULES.register("symmetric")
def _symmetric(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find zero points that are not zero."""
    for node in _calls(gm, QUANTIZE, DEQUANTIZE, DEQUANTIZE_BLOCKS):
        if edit.is_constant(node.args[2]) and edit.get_tensor(gm, node.args[2]).any():  # type: ignore[arg-type]
            yield node, "its zero point is not 0; expected a symmetric scheme"


@RULES.register("signed")
def _signed(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find integers without a sign: there are int8 and float8, and int4 of weights."""
    for node in _calls(gm, QUANTIZE):
        if node.args[6] not in (torch.int8, torch.float8_e4m3fn):
            yield node, f"its integers are {str(node.args[6]).removeprefix('torch.')}; expected int8 or float8_e4m3fn"
    for node in _calls(gm, DEQUANTIZE_BLOCKS):
        if node.args[5] not in ("int4", "int8"):
            yield node, f"its integers are {node.args[5]}; expected int4 or int8"


@RULES.register("positive-scale")
def _positive(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find scales that are not positive and finite."""
    for node in _calls(gm, QUANTIZE, DEQUANTIZE, DEQUANTIZE_BLOCKS):
        if edit.is_constant(node.args[1]):
            scale = edit.get_tensor(gm, node.args[1])  # type: ignore[arg-type]
            if not (scale.min() > 0 and math.isfinite(scale.max())):
                yield node, f"its scales lie in [{scale.min():g}, {scale.max():g}]; expected positive ones"


@RULES.register("axis")
def _axis(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find activations with several scales, and weights [K, N] with others than one for each output column."""
    for node in _calls(gm, QUANTIZE):
        if node.args[3] is not None:
            yield node, f"an activation has scales along axis {node.args[3]}; expected one scale"
    for node in _calls(gm, DEQUANTIZE):
        product = any(user.target is torch.ops.aten.matmul.default and user.args[1] is node for user in node.users)
        if product and edit.is_constant(node.args[0]) and node.args[3] not in (None, 1):
            yield node, f"a weight has scales along axis {node.args[3]}; expected one for each output column"


@RULES.register("blocks")
def _blocks(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find blocks of weights that are not 64 or 128 of the values that are summed, or a shorter last one."""
    for node in _calls(gm, DEQUANTIZE_BLOCKS):
        known, size = edit.info(node), node.args[4]
        if size not in _BLOCKS:
            yield node, f"a scale for every {size} values; expected 64 or 128"
        elif known is not None and known.shape[0] % size:  # type: ignore[operator]
            yield node, f"blocks of {size} do not divide the {known.shape[0]} values that are summed"


@RULES.register("pairs")
def _pairs(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find integers that something else than a dequantize of their own scale reads, beyond moves of them."""
    for node in _calls(gm, QUANTIZE):
        for reader in _readers(node):
            if reader.target is not DEQUANTIZE:
                yield node, f"its integers are read by %{reader.name} ({reader.target}); expected a dequantize"
            elif not _same(gm, node.args[1], reader.args[1]):
                yield node, f"%{reader.name} has another scale; expected that of its quantize"


@RULES.register("no-bias")
def _no_bias(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Find biases in integers, which are no part of quantization."""
    for node in _calls(gm, DEQUANTIZE):
        known = edit.info(node)
        if edit.is_constant(node.args[0]) and known is not None and len(known.shape) == 1:
            yield node, "a bias in integers; expected float"


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads integers, seen through ops that move them."""
    for user in node.users:
        if user.target in MOVES_VALUES:
            yield from _readers(user)
        else:
            yield user


def _same(gm: fx.GraphModule, left: object, right: object) -> bool:
    both = edit.is_constant(left) and edit.is_constant(right)
    return left is right or (both and torch.equal(edit.get_tensor(gm, left), edit.get_tensor(gm, right)))  # type: ignore[arg-type]
