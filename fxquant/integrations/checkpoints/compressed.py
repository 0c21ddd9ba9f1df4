"""compressed-tensors checkpoints, as llm-compressor writes them: int8 and int4 weights, int8 and fp8 activations.

Of a linear with K inputs and N outputs, W = S·(q − Z):

    weight             int8 or float8 (N, K), but in "pack-quantized"
    weight_packed      int32 (N, ⌈K·bits/32⌉), words along K of q + 2^(bits−1); weight_shape holds (N, K)
    weight_scale       (1,) a tensor, (N, 1) a channel, (N, ⌈K/group_size⌉) a group
    weight_zero_point  as the scale, int8; of "pack-quantized" in words along N. Where it is not symmetric.
    weight_g_idx       (K,), the group of each input. Where groups do not stand together.
    input_scale        (1,), and input_zero_point. Where inputs are static.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import DataError
from fxquant.integrations.checkpoints.folder import FLOATS, Folder
from fxquant.integrations.checkpoints.layer import Layer, grouped, order_of
from fxquant.integrations.checkpoints.schemes import PACKED, Group, Inputs, ignored, read_groups, targeted
from fxquant.integrations.checkpoints.words import unpack_words
from fxquant.spec import QParams, QuantSpec

METHOD = "compressed-tensors"
PARTS = (
    "weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx",
    "input_scale", "input_zero_point",
)  # fmt: skip
_INTEGERS = (torch.int8, torch.int32, torch.int64)
FLOAT8 = "float8_e4m3fn"


def read_compressed(folder: Folder, config: Mapping[str, Any], model: nn.Module) -> dict[str, Layer]:
    """Return the quantized modules of a checkpoint by their paths.

    Raises:
        DataError: a scheme or format that has no form here; a tensor that is missing, of another dtype or shape, or of
            a module that the configuration leaves in float.
    """
    place = str(folder.path)
    found = targeted(read_groups(config, place), ignored(config, place), model)
    scaled = {name.removesuffix(".weight_scale") for name in folder.tensors if name.endswith(".weight_scale")}
    unsaid = sorted(scaled - set(found))
    if unsaid:
        name = f"{unsaid[0]}.weight_scale"
        raise DataError(f"{folder.where(name)}: quantization_config says of no such module that it is quantized")
    if not found:
        raise DataError(f"{place}: no module of the model is a target of quantization_config")
    return {path: _layer(folder, path, group) for path, group in found.items()}


def _layer(folder: Folder, path: str, group: Group) -> Layer:
    weights = group.weights
    bits, integers = weights.bits, _integers(folder, path, group)
    n, k = integers.shape
    size = min(weights.group_size, k) if weights.strategy == "group" else k
    count = -(-k // size)
    scale = _scale(folder, f"{path}.weight_scale", (1, 1) if weights.strategy == "tensor" else (n, count))
    if weights.floating:
        channel = scale.numel() > 1
        spec = QuantSpec(dtype=FLOAT8, granularity="per-channel" if channel else "per-tensor", symmetric=True)
        flat = scale.flatten() if channel else scale.reshape(())
        return _with_inputs(folder, path, Layer(spec, integers, QParams(flat, _zeros(flat), spec.axis)), group.inputs)
    zero_point = torch.zeros_like(scale, dtype=torch.int8)
    if not weights.symmetric:
        zero_point = _zero_point(folder, path, group, scale.shape)
    # An integer product takes 4 bits as 8.
    dtype = "int8" if bits == 8 or (group.inputs is not None and count == 1) else "int4"
    order = _order(folder, path, (k, size, count))
    if order is not None:
        integers = integers[:, order].contiguous()
    layer = grouped(integers, scale.expand(n, count), zero_point.expand(n, count), dtype, size, order)
    return _with_inputs(folder, path, layer, group.inputs)


def _integers(folder: Folder, path: str, group: Group) -> Tensor:
    """Return the integers of a weight, or its float8 values, (N, K)."""
    bits = group.weights.bits
    if group.format != PACKED:
        dtype = torch.float8_e4m3fn if group.weights.floating else torch.int8
        values = folder.take(f"{path}.weight", (dtype,))
        if values.ndim != 2 or 0 in values.shape:
            raise DataError(f"{folder.where(f'{path}.weight')} has shape {tuple(values.shape)}: expected two sizes")
        limit = 2 ** (bits - 1)
        if bits < 8 and bool(((values < -limit) | (values >= limit)).any()):
            raise DataError(f"{folder.where(f'{path}.weight')} has values beyond num_bits = {bits}")
        return values
    shape = folder.take(f"{path}.weight_shape", _INTEGERS, (2,)).tolist()
    if min(shape) < 1:
        raise DataError(f"{folder.where(f'{path}.weight_shape')} says {shape}: expected two sizes")
    n, k = shape
    words = folder.take(f"{path}.weight_packed", (torch.int32,), (n, -(-k * bits // 32)))
    return _signed(unpack_words(words, bits, 1)[:, :k], bits).contiguous()


def _signed(values: Tensor, bits: int) -> Tensor:
    middle: int = 2 ** (bits - 1)
    return (values.to(torch.int16) - middle).to(torch.int8)


def _scale(folder: Folder, name: str, shape: tuple[int, int]) -> Tensor:
    stored = folder.tensors.get(name)
    single = stored is not None and shape == (1, 1) and stored.shape in ((), (1,))
    scale = folder.take(name, FLOATS, stored.shape if single and stored is not None else shape)
    return scale.reshape(shape).float()


def _zero_point(folder: Folder, path: str, group: Group, shape: torch.Size) -> Tensor:
    name, bits = f"{path}.weight_zero_point", group.weights.bits
    if group.format == PACKED and group.weights.strategy != "tensor":
        words = folder.take(name, (torch.int32,), (-(-shape[0] * bits // 32), shape[1]))
        return _signed(unpack_words(words, bits, 0)[: shape[0]], bits)
    stored = folder.tensors.get(name)
    single = stored is not None and shape.numel() == 1 and stored.shape in ((), (1,))
    values = folder.take(name, _INTEGERS, None if single else tuple(shape))
    return values.reshape(shape).to(torch.int8)


def _order(folder: Folder, path: str, sizes: tuple[int, int, int]) -> Tensor | None:
    name = f"{path}.weight_g_idx"
    if name not in folder.tensors:
        return None
    k, size, count = sizes
    groups = folder.take(name, _INTEGERS, (k,))
    unset = bool((groups == -1).all())  # what some versions wrote where there is no order
    return None if unset else order_of(groups, size, count, folder.where(name))


def _with_inputs(folder: Folder, path: str, layer: Layer, inputs: Inputs | None) -> Layer:
    """Return the layer with the quantization of its inputs."""
    if inputs is None:
        return layer
    spec = QuantSpec(
        dtype=FLOAT8 if inputs.floating else "int8",
        granularity="per-token" if inputs.by_token else "per-tensor",
        symmetric=inputs.symmetric or inputs.floating,
        dynamic=inputs.dynamic,
        range="full",
    )
    if inputs.dynamic:
        return replace(layer, activation=spec)
    scale = _scale(folder, f"{path}.input_scale", (1, 1)).reshape(())
    zero_point = _zeros(scale)
    if not spec.symmetric:
        zero_point = folder.take(f"{path}.input_zero_point", _INTEGERS).reshape(-1)[0].to(torch.int32)
    return replace(layer, activation=spec, activation_qparams=QParams(scale, zero_point))


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int32)
