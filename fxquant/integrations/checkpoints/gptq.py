"""GPTQ checkpoints, as GPTQModel, AutoGPTQ and Optimum write them: W = S·(q − Z) in groups along the inputs.

Of a linear with K inputs, N outputs and G = ⌈K/group_size⌉ groups:

    qweight  int32 (K·bits/32, N), words along K       scales   float (G, N)
    qzeros   int32 (G, N·bits/32), words along N       g_idx    int32 (K,), the group of each input

Version 1 stores Z − 1, modulo 2^bits; version 2 stores Z.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.config import expect, within
from fxquant.errors import ConfigError, DataError
from fxquant.integrations.checkpoints.folder import FLOATS, Folder
from fxquant.integrations.checkpoints.layer import Layer, grouped, order_of
from fxquant.integrations.checkpoints.words import BITS, unpack_words

METHOD = "gptq"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
# What a checkpoint calls its format → what is stored for a zero point of 0.
VERSIONS = {"gptq": -1, "gptq_v2": 0}


@dataclass(frozen=True)
class Scheme:
    """How one module is quantized; a `group_size` of −1 is one group of all inputs."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Settings:
    """What a configuration says: the scheme, those of other modules by pattern, and what is stored for Z = 0.

    `ordered` says that the groups are not as they stand; a scheme of None means modules that stay in float.
    """

    scheme: Scheme
    ordered: bool
    zero: int
    others: tuple[tuple[re.Pattern[str], Scheme | None], ...]

    def of(self, path: str) -> Scheme | None:
        """Return the scheme of the module at `path`."""
        return next((scheme for pattern, scheme in self.others if pattern.match(path)), self.scheme)


def read_gptq(folder: Folder, config: Mapping[str, Any], model: nn.Module) -> dict[str, Layer]:
    """Return the quantized linears of a checkpoint by their paths.

    Raises:
        DataError: an unknown format or number of bits; a tensor that is missing, of another dtype or shape; groups
            that do not fit.
    """
    settings = _settings(config, str(folder.path))
    paths = [name.removesuffix(".qweight") for name in folder.tensors if name.endswith(".qweight")]
    if not paths:
        raise DataError(f"{folder.path}: no tensor is called *.qweight: expected the weights of a GPTQ checkpoint")
    return {path: _layer(folder, path, settings) for path in paths}


def _settings(config: Mapping[str, Any], place: str) -> Settings:
    try:
        with within(f"{place}: quantization_config"):
            scheme = _scheme(config, Scheme(0, 0))
            name = config.get("checkpoint_format", config.get("format")) or "gptq"
            name = "marlin" if config.get("is_marlin_format") else name
            words = config.get("pack_dtype", "int32")
            if name not in VERSIONS or words not in ("int32", None):
                found = f"format = {name!r}" if name not in VERSIONS else f"pack_dtype = {words!r}"
                raise ConfigError(f"{found} cannot be read: expected {' or '.join(VERSIONS)}, in words of int32")
            others = _others(config.get("dynamic") or {}, scheme)
            return Settings(scheme, bool(config.get("desc_act", False)), VERSIONS[name], others)
    except ConfigError as error:
        raise DataError(str(error)) from None


def _scheme(data: Mapping[str, Any], inherited: Scheme) -> Scheme:
    bits = expect("bits", data.get("bits", inherited.bits), int)
    size = expect("group_size", data.get("group_size", inherited.group_size), int)
    if bits not in BITS:
        raise ConfigError(f"bits = {bits} cannot be read: fxquant has integers of {' and '.join(map(str, BITS))} bits")
    if size != -1 and size < 1:
        raise ConfigError(f"group_size = {size}: expected a positive integer, or −1 for one group of all inputs")
    return Scheme(bits, size)


def _others(data: object, scheme: Scheme) -> tuple[tuple[re.Pattern[str], Scheme | None], ...]:
    """Return the schemes of single modules, as GPTQModel says them: patterns, "-:" before those that stay in float."""
    found = []
    for text, changes in expect("dynamic", data, dict).items():
        try:
            pattern = re.compile(text.removeprefix("+:").removeprefix("-:"))
        except re.error as error:
            raise ConfigError(f"dynamic: {text!r} is no regular expression: {error}") from None
        skipped = text.startswith("-:")
        found.append((pattern, None if skipped else _scheme(expect(text, changes, dict), scheme)))
    return tuple(found)


def _layer(folder: Folder, path: str, settings: Settings) -> Layer:
    scheme = settings.of(path)
    if scheme is None:
        raise DataError(f"{folder.where(f'{path}.qweight')}: quantization_config says that this module stays in float")
    rows, n = _two(folder, f"{path}.qweight")
    values = 32 // scheme.bits
    k = rows * values
    size = min(scheme.group_size, k) if scheme.group_size > 0 else k
    count = -(-k // size)
    words = folder.take(f"{path}.qweight", (torch.int32,))
    zeros = folder.take(f"{path}.qzeros", (torch.int32,), (count, -(-n // values)))
    scale = folder.take(f"{path}.scales", FLOATS, (count, n)).T.contiguous().float()
    zero_point = unpack_words(zeros, scheme.bits, 1)[:, :n].T.contiguous()
    zero_point = (zero_point - settings.zero) & (2**scheme.bits - 1)
    integers = unpack_words(words, scheme.bits, 0).T.contiguous()
    order = _order(folder, path, settings, (k, size, count))
    if order is not None:
        integers = integers[:, order].contiguous()
    return grouped(integers, scale, zero_point, f"uint{scheme.bits}", size, order)


def _two(folder: Folder, name: str) -> tuple[int, int]:
    shape = folder.tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"{folder.where(name)} has shape {shape}: expected two sizes")
    return shape[0], shape[1]


def _order(folder: Folder, path: str, settings: Settings, sizes: tuple[int, int, int]) -> Tensor | None:
    name = f"{path}.g_idx"
    if name not in folder.tensors and not settings.ordered:
        return None  # some writers leave it out where groups are as they stand
    k, size, count = sizes
    return order_of(folder.take(name, (torch.int32, torch.int64), (k,)), size, count, folder.where(name))
