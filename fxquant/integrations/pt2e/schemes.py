"""What the arguments of `quantized_decomposed` operators say, as QuantSpecs.

Its operators give the limits of the integers and the dtype that holds them, where a QuantSpec names a format.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import CaptureError
from fxquant.graph import edit
from fxquant.numerics import quantize_to
from fxquant.spec import FORMATS, QParams, QuantSpec

_EIGHT_BITS = {torch.int8: "int8", torch.uint8: "uint8"}
_BY_TOKEN = {"choose_qparams_per_token": True, "choose_qparams_per_token_asymmetric": False}  # symmetric?


@dataclass(frozen=True)
class Scheme:
    """How a quantize or dequantize converts.

    Scale and zero point are numbers or nodes: of constants, or of what choose_qparams gave. `group_size` counts along
    the last axis; it and `axis` are None for one scale a tensor, and for one a token.
    """

    scale: float | fx.Node
    zero_point: int | fx.Node
    axis: int | None
    group_size: int | None
    qmin: int
    qmax: int
    dtype: torch.dtype

    @property
    def dynamic(self) -> bool:
        """Whether the scale is found at run time."""
        return isinstance(self.scale, fx.Node) and not edit.is_constant(self.scale)


def read(gm: fx.GraphModule, given: dict[str, Any]) -> Scheme:
    """Return the scheme that arguments, by their names, state.

    Raises:
        CaptureError: a result in another dtype than float32, or limits that are found at run time.
    """
    result = given.get("out_dtype") or given.get("output_dtype") or torch.float32
    if result is not torch.float32:
        raise CaptureError(f"it gives {result}, where fxquant's graphs compute in float32")
    zero_point = given.get("zero_point", given.get("zero_points"))
    limits = [given["quant_min"], given["quant_max"]]
    if any(isinstance(each, fx.Node) and not edit.is_constant(each) for each in limits):
        raise CaptureError("the limits of its integers are computed in the graph, where they have to be constants")
    qmin, qmax = (int(edit.get_tensor(gm, each)) if isinstance(each, fx.Node) else each for each in limits)
    return Scheme(
        scale=given["scale"] if "scale" in given else given["scales"],
        zero_point=0 if zero_point is None else zero_point,
        axis=given.get("axis"),
        group_size=given.get("group_size"),
        qmin=qmin,
        qmax=qmax,
        dtype=given["dtype"],
    )


def fixed(gm: fx.GraphModule, value: float | fx.Node, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """Return a constant scale or zero point as a tensor of this dtype: () for the whole tensor, (N,) for channels.

    Raises:
        CaptureError: a zero point that is no integer.
    """
    found = edit.get_tensor(gm, value).detach() if isinstance(value, fx.Node) else torch.tensor(value)
    if not dtype.is_floating_point and found.is_floating_point() and bool((found != found.round()).any()):
        raise CaptureError("a zero point of it is no integer, which fxquant has no form for")
    found = found.to(dtype)
    if scheme.group_size is not None:
        return found
    return found.reshape(()) if scheme.axis is None else found.flatten()


def integers(gm: fx.GraphModule, tensor: Tensor, scheme: Scheme) -> Tensor:
    """Return the integers of a float constant, which the graph would have quantized at each call."""
    scale = fixed(gm, scheme.scale, scheme, torch.float32)
    zero_point = fixed(gm, scheme.zero_point, scheme, torch.int32)
    qparams = QParams(scale, zero_point, scheme.axis, scheme.group_size)
    return quantize_to(tensor.detach(), qparams, scheme.qmin, scheme.qmax, scheme.dtype)


def constant_spec(scheme: Scheme, stored: Tensor, zero_point: Tensor) -> QuantSpec:
    """Return the spec of a constant: symmetric where its zero points are 0, restricted where no integer is the least.

    Raises:
        CaptureError: integers of a format that fxquant does not have.
    """
    names = [
        name
        for name, format in FORMATS.items()
        if format.torch_dtype is scheme.dtype and format.minimum <= scheme.qmin and scheme.qmax <= format.maximum
    ]
    if not names:
        raise CaptureError(f"it holds integers of {scheme.qmin} to {scheme.qmax} in {scheme.dtype}, {_KNOWN}")
    name = min(names, key=lambda each: FORMATS[each].maximum)
    format = FORMATS[name]
    symmetric = format.signed and not bool(zero_point.any())
    full = bool((stored == format.minimum).any())
    return QuantSpec(
        dtype=name,
        granularity=_granularity(scheme),
        axis=scheme.axis,
        group_size=scheme.group_size,
        symmetric=symmetric,
        range="full" if full else "restricted",
    )


def static_spec(scheme: Scheme) -> QuantSpec:
    """Return the spec of an activation whose scale is known ahead of time."""
    if scheme.dtype not in _EIGHT_BITS or scheme.group_size is not None:
        raise CaptureError(f"it makes activations of {scheme.dtype} with {_granularity(scheme)} scales, {_KNOWN}")
    name = _EIGHT_BITS[scheme.dtype]
    symmetric = scheme.qmin > FORMATS[name].minimum and FORMATS[name].signed and scheme.zero_point == 0
    return QuantSpec(dtype=name, granularity=_granularity(scheme), axis=scheme.axis, symmetric=symmetric)


def dynamic_spec(operator: str, given: dict[str, Any]) -> QuantSpec:
    """Return the spec of an activation whose scale a choose_qparams finds.

    Raises:
        CaptureError: limits, a dtype or an operator that `fxquant::choose_qparams` does not have.
    """
    if operator in _BY_TOKEN:
        return QuantSpec(dtype="int8", granularity="per-token", dynamic=True, symmetric=_BY_TOKEN[operator])
    name, limits = _EIGHT_BITS.get(given["dtype"]), (given["quant_min"], given["quant_max"])
    for scope in ("restricted", "full"):
        symmetric = operator == "choose_qparams_symmetric"
        spec = QuantSpec(dtype=name or "int8", dynamic=True, symmetric=symmetric, range=scope)
        if name is not None and limits == (spec.qmin, spec.qmax):
            return spec
    raise CaptureError(
        f"{operator} finds scales for integers of {limits[0]} to {limits[1]} in {given['dtype']}, {_KNOWN}"
    )


def _granularity(scheme: Scheme) -> str:
    if scheme.group_size is not None:
        return "per-group"
    return "per-tensor" if scheme.axis is None else "per-channel"


_KNOWN = "which fxquant does not have: quantize activations to all of int8 or uint8, weights to 8 or 4 bits"
