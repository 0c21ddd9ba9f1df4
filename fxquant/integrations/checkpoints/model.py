"""The model of a checkpoint in transformers' code, with plain linears that hold what the integers stand for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import DataError, first_line
from fxquant.evaluation.pretrained import import_transformers, loader_of, quiet
from fxquant.integrations.checkpoints.folder import FLOATS, Folder
from fxquant.integrations.checkpoints.layer import Layer

QUANTIZATION = "quantization_config"


def build_model(folder: Folder, skeleton: Any, layers: Mapping[str, Layer], own: frozenset[str]) -> Any:
    """Return the model in float32 and eval mode; modules with a layer are linears or embeddings on its values.

    Args:
        folder: the checkpoint.
        skeleton: its model without values, from `make_skeleton`.
        layers: what is quantized, by module path.
        own: names of the tensors that layers were made of; the others are the model's.

    Raises:
        DataError: the model lacks a module, or has it with another shape; a weight is missing.
    """
    transformers = import_transformers()
    with quiet(transformers):
        _check_modules(skeleton, layers, folder)
        state = _rest(folder, own) | {f"{path}.weight": _stored(skeleton, path, layers[path]) for path in layers}
        model = _loaded(type(skeleton), skeleton.config, state, folder)
        if model.can_generate() and (folder.path / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder.path, local_files_only=True)
    for path, layer in layers.items():
        _settle(model, path, layer, folder)
    return model.eval()


def make_skeleton(folder: Folder, task: str | None) -> Any:
    """Return the float model of a checkpoint without values.

    Args:
        folder: the checkpoint.
        task: as for `load_pretrained`.

    Raises:
        DataError: transformers has no such model.
    """
    transformers = import_transformers()
    loader = loader_of(transformers, folder.config, folder.path, task)
    try:
        config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
        if hasattr(config, QUANTIZATION):
            delattr(config, QUANTIZATION)
        with quiet(transformers), torch.device("meta"):
            return loader.from_config(config) if hasattr(loader, "from_config") else loader(config)
    except Exception as error:  # transformers raises what the values made it stumble over
        raise DataError(
            f"{folder.path / 'config.json'}: transformers makes no model of it: {first_line(error)}"
        ) from error


def _check_modules(skeleton: nn.Module, layers: Mapping[str, Layer], folder: Folder) -> None:
    for path, layer in layers.items():
        try:
            module = skeleton.get_submodule(path)
        except AttributeError:
            module = None
        shape = tuple(layer.integers.shape)
        if module is None or not _takes(module):
            found = "nothing there" if module is None else f"a {type(module).__name__}"
            raise DataError(
                f"{folder.path} quantizes {path}: expected a linear or embedding, and the {type(skeleton).__name__} of "
                f"this transformers has {found}"
            )
        weight: Any = module.weight
        expected = tuple(weight.T.shape if is_transposed(module) else weight.shape)
        if shape != expected:
            raise DataError(f"{folder.path}: the weight of {path} is {shape}, and config.json asks for {expected}")


def _takes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Say whether a module is a linear that holds its weight as (K, N), as GPT-2's are."""
    return type(module).__name__ == "Conv1D"


def _stored(skeleton: nn.Module, path: str, layer: Layer) -> Tensor:
    values = layer.values()
    return values.T if is_transposed(skeleton.get_submodule(path)) else values


def _rest(folder: Folder, own: frozenset[str]) -> dict[str, Tensor]:
    """Return the tensors that are not of layers, in float32 where they are floats."""
    found = {name: folder.get(name) for name in folder.tensors if name not in own}
    return {name: tensor.float() if tensor.dtype in FLOATS else tensor for name, tensor in found.items()}


def _loaded(cls: Any, config: Any, state: dict[str, Tensor], folder: Folder) -> Any:
    try:
        model, report = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # as above
        raise DataError(f"{folder.path}: transformers cannot load the model: {first_line(error)}") from error
    if report["mismatched_keys"]:
        name, found, expected = sorted(report["mismatched_keys"])[0]
        raise DataError(f"{folder.where(name)} has shape {tuple(found)}: expected {tuple(expected)}, by config.json")
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise DataError(f"{folder.path}: the tensor {names[0]} is missing, and {len(names) - 1} more")
    return model


def _settle(model: nn.Module, path: str, layer: Layer, folder: Folder) -> None:
    """Check that a module holds the values of its layer, and let a transposed one be a plain linear."""
    module: Any = model.get_submodule(path)
    weight = module.weight.detach()
    values = layer.values()
    if not torch.equal(weight.T if is_transposed(module) else weight, values):
        raise DataError(f"{folder.path}: {path} is quantized, and the model shares its weight with another module")
    stored = folder.tensors.get(f"{path}.bias")
    if stored is not None and module.bias is None and bool(folder.get(f"{path}.bias").any()):
        raise DataError(f"{folder.where(f'{path}.bias')} has values, and the model's {path} has no bias")
    if is_transposed(module):
        linear = nn.Linear(values.shape[1], values.shape[0], bias=module.bias is not None, device="meta")
        linear.weight = nn.Parameter(values, requires_grad=False)
        linear.bias = module.bias
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, linear)
