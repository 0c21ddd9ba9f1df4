"""What a compressed-tensors configuration says: which modules are quantized, and how."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxquant.config import expect, known_name, within
from fxquant.errors import ConfigError, DataError

PACKED = "pack-quantized"
FORMATS = ("int-quantized", PACKED, "naive-quantized", "float-quantized")
STRATEGIES = ("tensor", "channel", "group")
_REGEX = "re:"


@dataclass(frozen=True)
class Weights:
    """How a weight is quantized; `group_size` is 0 but for the strategy "group"."""

    bits: int
    floating: bool
    symmetric: bool
    strategy: str
    group_size: int


@dataclass(frozen=True)
class Inputs:
    """How the inputs of a module are quantized: to 8 bits, with one scale, or if dynamic with one for each token."""

    floating: bool
    symmetric: bool
    dynamic: bool
    by_token: bool


@dataclass(frozen=True)
class Group:
    """One group of a configuration: its targets, the format of its tensors, and its scheme."""

    targets: tuple[str, ...]
    format: str
    weights: Weights
    inputs: Inputs | None


def read_groups(config: Mapping[str, Any], place: str) -> tuple[Group, ...]:
    """Return the groups of a configuration.

    Raises:
        DataError: it says what has no form here; names the key, and what was expected.
    """
    try:
        with within(f"{place}: quantization_config"):
            _refuse_others(config)
            found = expect("config_groups", config.get("config_groups"), dict)
            return tuple(_group(name, group, config.get("format")) for name, group in found.items())
    except ConfigError as error:
        raise DataError(str(error)) from None


def targeted(groups: tuple[Group, ...], ignore: tuple[str, ...], model: nn.Module) -> dict[str, Group]:
    """Return the group of each linear and embedding of a model that is a target and not to be ignored.

    Names count before patterns, and these before classes.
    """
    found = {}
    for path, module in model.named_modules():
        classes = {cls.__name__ for cls in type(module).__mro__}
        if isinstance(module, nn.Linear | nn.Embedding) and not any(_rank(each, path, classes) for each in ignore):
            ranked = [(_rank(target, path, classes), group) for group in groups for target in group.targets]
            best = max(ranked, key=lambda each: each[0], default=(0, None))
            if best[0] and best[1] is not None:
                found[path] = best[1]
    return found


def _rank(target: str, path: str, classes: set[str]) -> int:
    """Return how specific a target is that means a module; 0 where it does not."""
    if target == path:
        return 3
    if target.startswith(_REGEX):
        return 2 if re.match(target.removeprefix(_REGEX), path) else 0
    return 1 if target in classes else 0


def ignored(config: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Return the targets that are to stay in float."""
    try:
        with within(f"{place}: quantization_config"):
            return _targets("ignore", config.get("ignore") or [])
    except ConfigError as error:
        raise DataError(str(error)) from None


def _refuse_others(config: Mapping[str, Any]) -> None:
    sparse = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        raise ConfigError(f"sparsity_config: format = {sparse!r} cannot be read: expected dense weights")
    if (config.get("transform_config") or {}).get("config_groups"):
        raise ConfigError("transform_config says that the model's activations are rotated, which cannot be read")
    if config.get("kv_cache_scheme") is not None:
        raise ConfigError("kv_cache_scheme: a quantized cache cannot be read: expected null")


def _group(name: str, data: object, format: object) -> Group:
    with within(f"config_groups.{name}"):
        if isinstance(data, list):
            raise ConfigError("names a preset: expected its scheme, as compressed-tensors writes it")
        group = expect(name, data, dict)
        own = expect("format", group.get("format") or format, str)
        known_name("format", own, FORMATS, "format")
        if group.get("output_activations") is not None:
            raise ConfigError("output_activations cannot be read: expected null, results stay in float")
        weights = _weights(expect("weights", group.get("weights"), dict))
        inputs = group.get("input_activations")
        return Group(
            _targets("targets", group.get("targets")),
            own,
            weights,
            None if inputs is None else _inputs(expect("input_activations", inputs, dict)),
        )


def _weights(data: Mapping[str, Any]) -> Weights:
    with within("weights"):
        floating, bits = _kind(data)
        strategy = data.get("strategy") or ("group" if (data.get("group_size") or -1) > 0 else "channel")
        known_name("strategy", strategy, STRATEGIES, "strategy")
        size = expect("group_size", data.get("group_size"), int) if strategy == "group" else 0
        if strategy == "group" and size < 1:
            raise ConfigError(f"group_size = {size}: expected a positive integer")
        if data.get("dynamic"):
            raise ConfigError("dynamic = true: expected weights whose scales are in the file")
        if (bits, floating) not in ((4, False), (8, False), (8, True)) or (floating and strategy == "group"):
            kind = "float" if floating else "int"
            raise ConfigError(
                f"{kind} of num_bits = {bits} by strategy {strategy!r} cannot be read: expected int of 4 or 8 bits, or "
                "float of 8 with one scale a tensor or channel"
            )
        return Weights(bits, floating, _symmetric(data), strategy, size)


def _inputs(data: Mapping[str, Any]) -> Inputs:
    with within("input_activations"):
        floating, bits = _kind(data)
        strategy, dynamic = data.get("strategy") or "tensor", data.get("dynamic") or False
        by_token = strategy == "token"
        if bits != 8 or strategy not in ("tensor", "token") or dynamic not in (True, False) or by_token > dynamic:
            raise ConfigError(
                f"num_bits = {bits}, strategy = {strategy!r}, dynamic = {dynamic!r} cannot be read: expected 8 bits, "
                "and one scale for a tensor, or dynamic ones for its tokens"
            )
        return Inputs(floating, _symmetric(data), dynamic, by_token)


def _kind(data: Mapping[str, Any]) -> tuple[bool, int]:
    kind = str(data.get("type", "int")).lower()
    known_name("type", kind, ("int", "float"), "type")
    return kind == "float", expect("num_bits", data.get("num_bits", 8), int)


def _symmetric(data: Mapping[str, Any]) -> bool:
    return expect("symmetric", data.get("symmetric", True), bool)


def _targets(key: str, given: object) -> tuple[str, ...]:
    found = tuple(expect(key, each, str) for each in expect(key, given, list))
    for each in found:
        try:
            re.compile(each.removeprefix(_REGEX) if each.startswith(_REGEX) else "")
        except re.error as error:
            raise ConfigError(f"{key}: {each!r} is no regular expression: {error}") from None
    return found
