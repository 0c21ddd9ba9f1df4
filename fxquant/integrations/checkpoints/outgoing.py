"""A model's parameters as a checkpoint is to hold them, checked against the model's class before a file is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import manifest, tensor_file
from fxquant.errors import ExportError, first_line
from fxquant.graph import edit
from fxquant.integrations.checkpoints.collect import Stored, collect
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.integrations.checkpoints.model import QUANTIZATION, is_transposed
from fxquant.integrations.packages import need
from fxquant.integrations.substitutions import Substitution

FLOAT_WEIGHT = "float weight"


@dataclass
class Outgoing:
    """A checkpoint in the making.

    `config` and `generation` are the model's configurations, `layers` what is to be quantized by module path, `modules`
    the modules of the model, `state` its other tensors, and `substitutions` what is not as the graphs have it.
    """

    config: dict[str, Any]
    generation: dict[str, Any] | None
    modules: dict[str, nn.Module]
    layers: dict[str, Layer] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    substitutions: list[Substitution] = field(default_factory=list)

    def note(self, path: str, name: str, text: str, *, exact: bool) -> None:
        """Add a substitution at a module that is quantized."""
        self.substitutions.append(Substitution(name, self.nodes[path].name, path, text, exact))


def outgoing(graphs: Mapping[str, fx.GraphModule], takes: Callable[[str, nn.Module], bool], why: str) -> Outgoing:
    """Return the parameters of the model that graphs were made of.

    Args:
        graphs: the Q/DQ graphs.
        takes: says whether a format quantizes a linear, given its path and module; other weights become floats.
        why: what is said of these.

    Raises:
        ExportError: the model is none of transformers, or a parameter of it is not in the graphs.
    """
    config, generation = _configurations(graphs)
    skeleton = _skeleton(config)
    stored, floats = collect(graphs.values())
    found = Outgoing(config, generation, dict(skeleton.named_modules()))
    for names in _aliases(skeleton):
        _place(found, names, stored, floats, takes, why)
    if not found.layers:
        raise ExportError(f"no weight of the graph is quantized in a way that the format has: {why}")
    found.state |= {name: floats[name] for name, _ in skeleton.named_buffers() if _saved(skeleton, name, floats)}
    return found


def write(found: Outgoing, folder: Path, parts: Mapping[str, Tensor], quantization: Mapping[str, Any]) -> None:
    """Write the tensors, config.json with what it says of the quantization, and generation_config.json."""
    tensors = {name: _copied(tensor) for name, tensor in {**found.state, **parts}.items()}
    tensor_file.write(folder / "model.safetensors", tensors, {"format": "pt"})
    manifest.write_json(folder / "config.json", {**found.config, QUANTIZATION: quantization}, indent=2)
    if found.generation is not None:
        manifest.write_json(folder / "generation_config.json", found.generation, indent=2)


def _copied(tensor: Tensor) -> Tensor:
    """Return a tensor in memory of its own: several may be views of one, which the file's format has not."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _configurations(graphs: Mapping[str, fx.GraphModule]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    facts = [edit.marks(gm) for gm in graphs.values()]
    config = next((each["config"] for each in facts if each.get("config")), None)
    if not isinstance(config, dict) or not config.get("architectures"):
        raise ExportError("the graph knows no configuration of transformers: a checkpoint is of one of its models")
    generation = next((each["generation"].get("config") for each in facts if "generation" in each), None)
    return {key: value for key, value in config.items() if key != QUANTIZATION}, generation


def _skeleton(config: dict[str, Any]) -> Any:
    transformers: Any = need("transformers", "transformers", "export to a checkpoint")
    name = config["architectures"][0]
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ExportError(f"the graph was made from a {str(name)[:80]!r}, which transformers does not have")
    try:
        with torch.device("meta"):
            made = cls(cls.config_class.from_dict(dict(config)))  # type: ignore[attr-defined]
        made.tie_weights()
        return made
    except Exception as error:  # transformers raises what the values made it stumble over
        raise ExportError(f"transformers makes no {name} of the graph's configuration: {first_line(error)}") from error


def _aliases(skeleton: nn.Module) -> list[list[str]]:
    """Return the names of each parameter; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _place(
    found: Outgoing,
    names: list[str],
    stored: Mapping[str, Stored],
    floats: Mapping[str, Tensor],
    takes: Callable[[str, nn.Module], bool],
    why: str,
) -> None:
    """Put one parameter among the layers or the other tensors."""
    name = next((each for each in names if each in stored or each in floats), None)
    if name is None:
        raise ExportError(
            f"the graph does not hold {names[0]}, which a checkpoint of its model has: it was folded away"
        )
    path, _, leaf = name.rpartition(".")
    if name not in stored:
        found.state[names[0]] = floats[name]
        return
    entry, module = stored[name], found.modules[path]
    found.nodes[path] = entry.node
    if entry.linear and leaf == "weight" and len(names) == 1 and takes(path, module):
        found.layers[path] = entry.layer
        return
    values = entry.layer.values()
    found.state[names[0]] = values.T if is_transposed(module) and leaf == "weight" else values
    found.note(path, FLOAT_WEIGHT, why, exact=True)


def _saved(skeleton: nn.Module, name: str, floats: Mapping[str, Tensor]) -> bool:
    path, _, leaf = name.rpartition(".")
    return name in floats and leaf not in skeleton.get_submodule(path)._non_persistent_buffers_set
