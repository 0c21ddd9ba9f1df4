"""`export(…, format="compressed-tensors")`: Q/DQ graphs as a checkpoint of it (compressed.py says what is in it)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import ConfigError, ExportError
from fxquant.integrations.checkpoints.compressed import METHOD
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.integrations.checkpoints.outgoing import Outgoing, outgoing, write
from fxquant.integrations.checkpoints.schemes import PACKED
from fxquant.integrations.checkpoints.words import pack_words
from fxquant.integrations.substitutions import Written
from fxquant.spec import QuantSpec

_WHY = "tables and tied weights are written dequantized, in float32: loaders look up rows of floats"
_MIXED = "mixed-precision"


def write_compressed(graphs: Mapping[str, fx.GraphModule], folder: Path, target: str | None) -> dict[str, Written]:
    """Write the model of Q/DQ graphs as a checkpoint of compressed-tensors.

    Raises:
        ConfigError: a target; the format has none.
        ExportError: a quantized linear that the format has not, by name.
    """
    if target is not None:
        raise ConfigError(f"target {target!r}: compressed-tensors has no targets, leave it out")
    found = outgoing(graphs, lambda _, module: isinstance(module, nn.Linear), _WHY)
    parts: dict[str, Tensor] = {}
    schemes: dict[str, dict[str, Any]] = {}
    for path, layer in found.layers.items():
        _check(path, layer)
        scheme = _scheme(found, path, layer)
        schemes[path] = scheme
        parts |= {f"{path}.{name}": part for name, part in _parts(layer, scheme).items()}
    write(found, folder, parts, _configuration(found, schemes))
    return {next(iter(graphs)): Written(tuple(found.substitutions))}


def _check(path: str, layer: Layer) -> None:
    k, size, inputs = layer.integers.shape[1], layer.weight.group_size, layer.activation
    if size is not None and size < k and k % size:
        raise ExportError(
            f"{path} has {k} inputs in groups of {size}, the last of which is short: expected whole groups"
        )
    if size is not None and layer.order is not None:
        raise ExportError(
            f"{path} has groups of columns that do not stand together, which compressed-tensors no longer reads: "
            "export format gptq"
        )
    if inputs is None:
        return
    if inputs.format.packed or inputs.granularity not in ("per-tensor", "per-token"):
        raise ExportError(
            f"{path} has inputs of {inputs.dtype}, {inputs.granularity}: expected 8 bits, a tensor or tokens"
        )
    if inputs.format.floating is not layer.weight.format.floating:
        raise ExportError(f"{path} has inputs of {inputs.dtype} under {layer.weight.dtype}: expected both of one kind")


def _scheme(found: Outgoing, path: str, layer: Layer) -> dict[str, Any]:
    """Return what config.json says of a layer, without its targets; note where its inputs are other ones."""
    spec, inputs = layer.weight, layer.activation
    size = spec.group_size
    by_group = size is not None and size < layer.integers.shape[1]
    strategy = "group" if by_group else "tensor" if spec.granularity == "per-tensor" else "channel"
    weights = {**_arguments(spec), "strategy": strategy, "dynamic": False, **({"group_size": size} if by_group else {})}
    form = PACKED if inputs is None else "int-quantized"
    if spec.format.floating:
        form = "naive-quantized" if inputs is None else "float-quantized"
    scheme: dict[str, Any] = {"weights": weights, "input_activations": None, "output_activations": None, "format": form}
    if inputs is None:
        return scheme
    signed = inputs.format.signed and not inputs.format.floating
    narrow = inputs.symmetric and signed and inputs.range == "restricted"
    if narrow or (inputs.symmetric and inputs.dynamic and not inputs.format.signed):
        text = "symmetric inputs are quantized to [−128, 127], at run time with S = 2·max/255"
        found.note(path, "whole range", text, exact=False)
    strategy = "token" if inputs.granularity == "per-token" else "tensor"
    scheme["input_activations"] = {**_arguments(inputs), "strategy": strategy, "dynamic": inputs.dynamic}
    return scheme


def _arguments(spec: QuantSpec) -> dict[str, Any]:
    kind = "float" if spec.format.floating else "int"
    return {"num_bits": 4 if spec.format.packed else 8, "type": kind, "symmetric": spec.symmetric}


def _parts(layer: Layer, scheme: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of one linear."""
    weights, (n, k) = scheme["weights"], layer.integers.shape
    bits, middle = weights["num_bits"], _middle(layer.weight)
    count = {"tensor": 1, "channel": 1, "group": layer.qparams.scale.shape[-1] if layer.qparams.scale.ndim else 1}
    shape = (1,) if weights["strategy"] == "tensor" else (n, count[weights["strategy"]])
    integers = layer.integers
    if layer.order is not None:
        integers = torch.empty_like(layer.integers)
        integers[:, layer.order] = layer.integers
    parts = {"weight_scale": layer.qparams.scale.reshape(shape)}
    if layer.weight.format.floating:
        return {**parts, "weight": integers, **_inputs(layer)}
    signed = (integers.to(torch.int16) - middle).to(torch.int8)
    if scheme["format"] == PACKED:
        parts["weight_packed"] = pack_words(_words(signed, bits), bits, 1)
        parts["weight_shape"] = torch.tensor([n, k])
    else:
        parts["weight"] = signed
    if not weights["symmetric"]:
        zeros = (layer.qparams.zero_point.to(torch.int16) - middle).to(torch.int8).reshape(shape)
        packed = scheme["format"] == PACKED and weights["strategy"] != "tensor"
        parts["weight_zero_point"] = pack_words(_words(zeros, bits), bits, 0) if packed else zeros
    return {**parts, **_inputs(layer)}


def _words(signed: Tensor, bits: int) -> Tensor:
    """Return signed integers as the unsigned ones that words hold."""
    middle: int = 2 ** (bits - 1)
    return (signed.to(torch.int16) + middle).to(torch.uint8)


def _inputs(layer: Layer) -> dict[str, Tensor]:
    """Return the static scale of a layer's inputs, and their zero point where they are not symmetric."""
    spec, qparams = layer.activation, layer.activation_qparams
    if spec is None or qparams is None:
        return {}
    scale = {"input_scale": qparams.scale.reshape(1)}
    if spec.symmetric:
        return scale
    return {**scale, "input_zero_point": (qparams.zero_point - _middle(spec)).to(torch.int8).reshape(1)}


def _middle(spec: QuantSpec) -> int:
    """Return what the integers of a format without a sign are more than signed ones."""
    return 0 if spec.format.signed else (spec.format.maximum + 1) // 2


def _configuration(found: Outgoing, schemes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the quantization's configuration: modules of one scheme are a group."""
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for path, scheme in schemes.items():
        groups.setdefault(json.dumps(scheme), (scheme, []))[1].append(path)
    linears = [path for path, module in found.modules.items() if isinstance(module, nn.Linear)]
    one = len(groups) == 1
    forms = sorted({scheme["format"] for scheme, _ in groups.values()})
    return {
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "format": forms[0] if len(forms) == 1 else _MIXED,
        "config_groups": {
            f"group_{number}": {**scheme, "targets": ["Linear"] if one else paths}
            for number, (scheme, paths) in enumerate(groups.values())
        },
        "ignore": [path for path in linears if path not in schemes],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
