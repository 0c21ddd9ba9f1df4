"""Puts `fxquant::tiled_linear_weight_only` into a graph, with the weight packed in tiles."""

import torch
from torch import Tensor, fx

from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.kernels.cuda import tiles, weight_only
from fxquant.kernels.cuda.triton_support import refusal
from fxquant.kernels.emit import activation_of, bias_of, result_dtype, stored, weight_only_refusal
from fxquant.kernels.int4 import unpack_int4
from fxquant.kernels.layout import Source
from fxquant.kernels.site import Site

__all__ = ["weight_only"]  # importing it defines the op


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
    known = edit.info(weight.quantized)
    assert known is not None, "constants are described"
    columns, depth = known.shape
    after = (bias_of(site), site.float_value("residual"), activation_of(site), columns)
    bits = 4 if weight.spec.format.packed else 8
    shape = (tiles.tiling(weight.spec, depth).group, bits, result_dtype(site), None)
    target = torch.ops.fxquant.tiled_linear_weight_only.default
    return site.emit(target, site.read("x").value, *_packed(site, (columns, depth)), *after, *shape)


def _packed(site: Site, shape: tuple[int, int]) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Return nodes of the weight (N, K), its scale and its zero point in tiles; a tied weight is packed once."""
    weight = site.read("weight")
    node, spec, scale, zero_point = weight.quantized, weight.spec, weight.scale, weight.zero_point
    assert node is not None and spec is not None and scale is not None and zero_point is not None
    plain = str(stored(node).target)

    def integers() -> Tensor:
        tensor = edit.get_tensor(site.gm, stored(node))
        return tensor if edit.is_constant(node) else unpack_int4(tensor, shape[1], spec.format.signed)

    def of_groups(parameter: fx.Node) -> Tensor:
        return tiles.pack_parameter(edit.get_tensor(site.gm, parameter), shape, spec)

    try:
        source = Source(plain, tiles.LAYOUT, tiles.layout_arguments(spec, shape[1]))
        packed = site.constant(f"{plain}_tiles", lambda: tiles.pack(integers(), spec), source)
        scales = site.constant(f"{plain}_tiles_scale", lambda: of_groups(scale))
        zeros = None if spec.symmetric else site.constant(f"{plain}_tiles_zero_point", lambda: of_groups(zero_point))
    except torch.OutOfMemoryError as error:
        raise FxQuantError(
            f"{edit.get_tensor(site.gm, stored(node)).device} has no memory left to pack the weight {plain}, "
            f"{list(shape)} of {spec.dtype}. The graph that was to be lowered is as it was: free memory on the device, "
            "or lower on one that has more"
        ) from error
    return packed, scales, zeros
