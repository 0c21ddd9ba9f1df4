"""The accelerator's one kernel, in place of its driver: an operator, what puts it into graphs, and where it runs."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxquant.kernels.devices import Device, devices
from fxquant.kernels.library import define
from fxquant.kernels.site import Site
from fxquant.kernels.table import emitter

TILE = 16  # features that are multiplied at a time


def linear_tiles(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return S_x·S_w·Σ q_x·q_w + bias as float32 (…, N) for int8 x (…, K) and weight (N, K); the sums are int32."""
    sums = torch.zeros((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)
    for start in range(0, x.shape[-1], TILE):
        tile = slice(start, start + TILE)
        sums += (x[..., tile].float() @ weight[:, tile].float().t()).to(torch.int32)  # exact: 16·127·128 < 2²⁴
    y = sums * (x_scale * weight_scale)
    return y if bias is None else y + bias


def _fake(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


OPERANDS = "Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias"
define(f"npu_linear_tiles({OPERANDS}) -> Tensor", linear_tiles, _fake)


@emitter("tilenpu", "linear_tiles", serves=("linear",), needs=("x", "weight"))
def emit_linear(site: Site) -> fx.Node | str:
    """Put the kernel into a graph, or say why it cannot serve there."""
    x, weight = site.read("x"), site.read("weight")
    if x.spec is None or not x.spec.symmetric or (x.spec.dtype, x.spec.granularity) != ("int8", "per-tensor"):
        return "the activations have to be int8, symmetric, with one scale"
    of_outputs = weight.spec is not None and weight.spec.group_size is None and weight.spec.axis in (None, 0)
    if weight.spec is None or weight.spec.dtype != "int8" or not weight.spec.symmetric or not of_outputs:
        return "the weight has to be int8, symmetric, with one scale or one for each output"
    operands = (x.quantized, x.scale, weight.quantized, weight.scale, site.float_value("bias"))
    return site.emit(torch.ops.fxquant.npu_linear_tiles.default, *operands)


@devices("tilenpu")
def where() -> Iterator[Device]:
    """Yield what the kernels run on: of a real accelerator, its cards, or why there is none."""
    yield Device("simulated tiles")
