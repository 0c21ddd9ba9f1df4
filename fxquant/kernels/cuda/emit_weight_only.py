"""Puts `fxquant::tiled_linear_weight_only` into a graph, with the weight packed in tiles."""

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu.weight_only import pack_parameter
from fxquant.kernels.cuda import tiles, weight_only
from fxquant.kernels.cuda.triton_support import refusal
from fxquant.kernels.emit import (
    Form,
    activation_of,
    bias_of,
    result_dtype,
    shape_of,
    stored,
    weight_in_form,
    weight_only_refusal,
)
from fxquant.kernels.site import Site

__all__ = ["weight_only"]  # importing it defines the op

_tiles = Form(tiles.LAYOUT, tiles.pack, pack_parameter, tiles.layout_arguments)


def emit_weight_only(site: Site) -> fx.Node | str:
    """Emit a linear of float activations on a packed weight of 8 or 4 bits."""
    refused = weight_only_refusal(site)
    if refused is not None:
        return refused
    weight = site.read("weight")
    assert weight.quantized is not None and weight.spec is not None, "a claimed weight is quantized"
    refused = refusal(edit.get_tensor(site.gm, stored(weight.quantized)).device)
    if refused is not None:
        return refused
    columns, depth = shape_of(weight.quantized)
    after = (bias_of(site), site.float_value("residual"), activation_of(site), columns)
    bits = 4 if weight.spec.format.packed else 8
    shape = (tiles.tiling(weight.spec, depth).group, bits, result_dtype(site), None)
    target = torch.ops.fxquant.tiled_linear_weight_only.default
    return site.emit(target, site.read("x").value, *weight_in_form(site, _tiles), *after, *shape)
