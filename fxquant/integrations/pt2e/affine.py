"""torchao's affine operators, as `quantize_` leaves them in exported graphs, in the words of `quantized_decomposed`.

They give a block: how many values along each axis share a scale. Weights are tensors of torchao's own classes, of which
an exported graph reads the parts.
"""

from typing import Any

import torch
from torch import fx

from fxquant.errors import CaptureError
from fxquant.graph import edit
from fxquant.spec import QuantSpec

NAMESPACE = "torchao"
CHOOSE = "choose_qparams_affine"
# Which argument of an operator says how integers are held.
_DTYPE_OF = {CHOOSE: "target_dtype", "quantize_affine": "output_dtype", "dequantize_affine": "input_dtype"}
_DTYPES = {(torch.int8, -128, 127): "int8", (torch.uint8, 0, 255): "uint8"}
_PART = "export::access_subclass_inner_tensor"
_ADVICE = (
    "quantize with its Int8DynamicActivationIntxWeightConfig or IntxWeightOnlyConfig(weight_dtype=torch.int8), which "
    "give the same schemes in operators that say so"
)
_FLOAT = 6  # float32 as schemas write it in a default


def unwrapped(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a graph whose weights are plain tensors: itself, or a copy that shares them.

    Raises:
        CaptureError: its products are spelled out in arithmetic with integers, of which no operator says what it is.
    """
    if not any(is_part(node) for node in gm.graph.nodes):
        return gm
    found = edit.clone(gm)
    for node in filter(is_part, list(found.graph.nodes)):
        whole, name = node.args
        weight = edit.get_tensor(found, whole)
        for user in node.users:
            if "_affine" not in str(user.target):
                raise CaptureError(
                    f"%{whole.name} is an {type(weight).__name__}, and {user.target} reads its {name}: torchao spells "
                    f"products with it out in arithmetic; {_ADVICE}"
                )
        edit.replace(node, edit.add_constant(found, f"{whole.target}_{name}", getattr(weight, name), node))
    edit.sweep(found)
    found.recompile()
    return found


def is_part(node: fx.Node) -> bool:
    """Say whether a node reads a tensor in a weight of a class of its own."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name == _PART


def in_common_words(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an affine operator by the names that `quantized_decomposed` has for them.

    Raises:
        CaptureError: an operator or a block that fxquant has no form for.
    """
    if name not in _DTYPE_OF:
        raise CaptureError(f"of torchao's operators fxquant takes {', '.join(_DTYPE_OF)}: keep this op in float")
    dtype = given[_DTYPE_OF[name]]
    limits = torch.iinfo(dtype)
    low, high = given["quant_min"], given["quant_max"]
    common = {
        "input": given["input"],
        "dtype": dtype,
        "quant_min": limits.min if low is None else int(low),
        "quant_max": limits.max if high is None else int(high),
    }
    if name == CHOOSE:
        return {**common, "mapping_type": given["mapping_type"], "block_size": given["block_size"]}
    scheme = {"scale": given["scale"], "zero_point": given["zero_point"]}
    if name == "dequantize_affine":
        scheme["out_dtype"] = torch.float32 if given["output_dtype"] == _FLOAT else given["output_dtype"]
    return {**common, **scheme, **_spread(given["input"], given["block_size"])}


def chosen_spec(given: dict[str, Any]) -> QuantSpec:
    """Return the spec of an activation whose scale a `choose_qparams_affine` finds.

    Raises:
        CaptureError: limits, a way to find scales, or a block that `fxquant::choose_qparams` does not have.
    """
    limits = (given["dtype"], given["quant_min"], given["quant_max"])
    name, mapping = _DTYPES.get(limits), given["mapping_type"]
    if name is None or mapping not in ("SYMMETRIC", "ASYMMETRIC") or (mapping, name) == ("SYMMETRIC", "uint8"):
        raise CaptureError(
            f"it finds scales {mapping} for {limits[0]} of {limits[1]} to {limits[2]}, which fxquant does not have: "
            "ASYMMETRIC for all of int8 or uint8, SYMMETRIC for all of int8"
        )
    by_token = _is_rows(_shape(given["input"]), given["block_size"])
    if any(each is not None for each in _spread(given["input"], given["block_size"]).values()):
        raise CaptureError(_unknown(given["input"], given["block_size"]))
    granularity, symmetric = "per-token" if by_token else "per-tensor", mapping == "SYMMETRIC"
    return QuantSpec(dtype=name, granularity=granularity, dynamic=True, symmetric=symmetric, range="full")


def _spread(source: fx.Node, block: list[Any]) -> dict[str, int | None]:
    """Return the axis of scales, or the size of their groups; neither for one scale, and for one a token."""
    shape = _shape(source)
    whole = [_is_all(size, each) for size, each in zip(shape, block, strict=True)]
    own = [axis for axis, each in enumerate(block) if each == 1 and not whole[axis]]
    rest = [axis for axis in range(len(block)) if not whole[axis] and axis not in own]
    if not edit.is_constant(source) and _is_rows(shape, block):
        return {"axis": None, "group_size": None}
    if not rest and len(own) <= 1:
        return {"axis": own[0] if own else None, "group_size": None}
    if len(shape) == 2 and own in ([0], []) and rest == [1] and block[0] == 1:
        return {"axis": None, "group_size": int(block[1])}
    raise CaptureError(_unknown(source, block))


def _unknown(source: fx.Node, block: list[Any]) -> str:
    return (
        f"{tuple(map(str, block))} values of {_shape(source)} share a scale, which fxquant has no form for: one for a "
        "tensor, a token or the channel of a weight, or for groups along the last axis of one"
    )


def _is_rows(shape: tuple[int, ...], block: list[Any]) -> bool:
    return all(each == 1 for each in block[:-1]) and _is_all(shape[-1], block[-1])


def _is_all(size: int, given: Any) -> bool:
    """Say whether a block is all of an axis; one that the graph computes from its sizes is that."""
    return isinstance(given, fx.Node) or given == size


def _shape(source: fx.Node) -> tuple[int, ...]:
    known = edit.info(source)
    assert known is not None, "capture knows every tensor"
    return known.shape
