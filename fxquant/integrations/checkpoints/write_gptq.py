"""`export(…, format="gptq")`: weight-only Q/DQ graphs as a GPTQ checkpoint (gptq.py says what is in it)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import manifest
from fxquant.errors import ConfigError, ExportError, suggest
from fxquant.integrations.checkpoints.gptq import METHOD, VERSIONS
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.integrations.checkpoints.model import is_transposed
from fxquant.integrations.checkpoints.outgoing import Outgoing, outgoing, write
from fxquant.integrations.checkpoints.words import pack_words
from fxquant.integrations.substitutions import Written

_IN_BLOCK = re.compile(r"^(.*?\.\d+)\.(.+)$")  # a block of a model's list of them, and a module's path in it
_WHY = "GPTQ checkpoints quantize the linears of blocks alone, so this weight is written dequantized, in float32"


@dataclass(frozen=True, eq=False)
class Unsigned:
    """A layer as GPTQ has it: q and Z unsigned, (N, K) and (N, G), scales (N, G), and the group of each column."""

    bits: int
    group_size: int
    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    groups: Tensor

    @property
    def symmetric(self) -> bool:
        return bool((self.zero_point == 2 ** (self.bits - 1)).all())

    @property
    def ordered(self) -> bool:
        return bool((self.groups[1:] < self.groups[:-1]).any())


def write_gptq(graphs: Mapping[str, fx.GraphModule], folder: Path, target: str | None) -> dict[str, Written]:
    """Write the model of Q/DQ graphs as a GPTQ checkpoint of version 1, or of the version that `target` names.

    Raises:
        ConfigError: an unknown version.
        ExportError: a quantized linear that the format has not, by name; or the blocks of the model differ.
    """
    version = target or "gptq"
    if version not in VERSIONS:
        raise ConfigError(f"target {version!r} is no version of GPTQ checkpoints: {suggest(version, VERSIONS)}")
    found = outgoing(graphs, _takes, _WHY)
    layers = {path: _unsigned(path, layer) for path, layer in found.layers.items()}
    bits, size = _one_scheme(layers)
    inside = _modules_in_block(found, layers)
    config = _configuration(layers.values(), bits, size, version, inside)
    parts = {f"{path}.{name}": part for path in layers for name, part in _parts(layers[path], version).items()}
    found.config["dtype"] = "float16"  # what kernels of GPTQ compute in; the tensors here may have more digits
    write(found, folder, parts, config)
    manifest.write_json(folder / "quantize_config.json", config, indent=2)
    return {next(iter(graphs)): Written(tuple(found.substitutions))}


def _takes(path: str, module: nn.Module) -> bool:
    return _IN_BLOCK.match(path) is not None and _is_linear(module)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _unsigned(path: str, layer: Layer) -> Unsigned:
    """Return a layer in the terms of the format, or raise `ExportError`."""
    spec, (n, k) = layer.weight, layer.integers.shape
    if layer.activation is not None:
        raise ExportError(
            f"{path} quantizes its inputs, and GPTQ checkpoints hold weights alone: export format "
            'compressed-tensors, or quantize with recipe="weight-only-int4"'
        )
    if spec.format.floating:
        raise ExportError(f"{path} is {spec.dtype}, and GPTQ checkpoints hold integers of 4 or 8 bits")
    bits = 4 if spec.format.packed else 8
    if k * bits % 32 or n * bits % 32:
        raise ExportError(f"{path} has {k} inputs and {n} outputs, which fill no whole words: expected multiples of 8")
    size = spec.group_size or k
    count = -(-k // size)
    middle = 2 ** (bits - 1) if spec.format.signed else 0
    scale, zero_point = (
        each.reshape(*each.shape, *(1,) * (2 - each.ndim)).expand(n, count)
        for each in (layer.qparams.scale, layer.qparams.zero_point)
    )
    integers, groups = layer.integers, torch.arange(k) // size
    if layer.order is not None:
        integers, groups = torch.empty_like(integers), torch.empty_like(groups)
        integers[:, layer.order], groups[layer.order] = layer.integers, torch.arange(k) // size
    return Unsigned(
        bits,
        spec.group_size or -1,
        (integers.to(torch.int16) + middle).to(torch.uint8),
        scale,
        (zero_point.to(torch.int16) + middle).to(torch.uint8),
        groups,
    )


def _one_scheme(layers: Mapping[str, Unsigned]) -> tuple[int, int]:
    """Return the bits and group size that all layers have, or raise `ExportError`."""
    schemes: dict[tuple[int, int], str] = {}
    for path, layer in layers.items():
        schemes.setdefault((layer.bits, layer.group_size), path)
    if len(schemes) > 1:
        said = "; ".join(f"{path}: {bits} bits, group_size {size}" for (bits, size), path in schemes.items())
        raise ExportError(f"a GPTQ checkpoint has one scheme for all linears, the graph has several: {said}")
    return next(iter(schemes))


def _modules_in_block(found: Outgoing, layers: Mapping[str, Unsigned]) -> list[list[str]] | None:
    """Return which linears of a block are quantized; None where all are."""
    inside: dict[str, dict[str, bool]] = {}
    for path, module in found.modules.items():
        match = _IN_BLOCK.match(path)
        if match is not None and _is_linear(module):
            inside.setdefault(match[2], {})[path] = path in layers
    for name, quantized in inside.items():
        if len(set(quantized.values())) > 1:
            odd = next(path for path, taken in quantized.items() if not taken)
            raise ExportError(
                f"{odd} is in float, and {name} of other blocks is quantized: GPTQ checkpoints have equal blocks"
            )
    names = [name for name, quantized in inside.items() if all(quantized.values())]
    return None if len(names) == len(inside) else [names]


def _configuration(
    layers: Iterable[Unsigned], bits: int, size: int, version: str, inside: list[list[str]] | None
) -> dict[str, Any]:
    layers = list(layers)
    config: dict[str, Any] = {
        "quant_method": METHOD,
        "bits": bits,
        "group_size": size,
        "desc_act": any(layer.ordered for layer in layers),
        "sym": all(layer.symmetric for layer in layers),
        "true_sequential": True,
        "lm_head": False,
        "checkpoint_format": version,
        "format": version,
        "meta": {"quantizer": [f"fxquant:{manifest.versions()['fxquant']}"]},
    }
    return config if inside is None else {**config, "modules_in_block_to_quantize": inside}


def _parts(layer: Unsigned, version: str) -> dict[str, Tensor]:
    """Return the tensors of one linear."""
    mask: int = 2**layer.bits - 1
    zeros = (layer.zero_point.to(torch.int16) + VERSIONS[version] & mask).to(torch.uint8)
    half = layer.scale.half()
    return {
        "qweight": pack_words(layer.integers.T, layer.bits, 0),
        "qzeros": pack_words(zeros.T, layer.bits, 1),
        "scales": (half if torch.equal(half.float(), layer.scale) else layer.scale).T.contiguous(),
        "g_idx": layer.groups.to(torch.int32),
    }
