"""The tensors of an artifact: a safetensors file in which each is stored once, whatever number of names it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxquant.errors import ArtifactError
from fxquant.graph.rebuild import tensor_key

# graph → name in that graph → {"key": name in the file, "parameter": whether it is one}
Tables = dict[str, dict[str, dict[str, Any]]]


def collect(named: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tables, dict[str, Tensor]]:
    """Return where each name of each graph is found, and the tensors to be stored: tied and shared ones once.

    A tensor is called as the first graph calls it, or where that name is taken with the graph's name before it.

    Raises:
        ArtifactError: a tensor is one that no file can hold.
    """
    keys: dict[Any, str] = {}
    tables: Tables = {graph: {} for graph in named}
    tensors: dict[str, Tensor] = {}
    for graph, group in named.items():
        for name, tensor in group.items():
            _check(name, tensor)
            identity = tensor_key(tensor)
            if identity not in keys:
                keys[identity] = f"{graph}/{name}" if name in tensors else name
                tensors[keys[identity]] = _alone(tensor)
            tables[graph][name] = {"key": keys[identity], "parameter": isinstance(tensor, nn.Parameter)}
    return tables, tensors


def _check(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or tensor.is_nested:
        kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise ArtifactError(f"tensor {name!r} ({kind}) cannot be saved: expected a dense tensor that holds its values")


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor, contiguous and with memory of its own: the format takes no views of a larger one."""
    plain = tensor.detach().cpu().contiguous()
    alone = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if alone else plain.clone()


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write the tensors, and what the file is to say of itself.

    Raises:
        OSError: the file cannot be written.
        ArtifactError: the format has no such dtype.
    """
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives; safetensors would let nobody else read
    try:
        save_file(tensors, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:  # which wraps what the system reports
        raise OSError(str(error)) from error
    except (KeyError, ValueError) as error:
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
        raise ArtifactError(f"a dtype among {dtypes} cannot be saved: {error}") from error


def read(path: Path, tables: Any, wanted: Mapping[str, list[str]]) -> dict[str, dict[str, Tensor]]:
    """Return for each graph its tensors by name; names that share one, in any graph, get one object.

    Args:
        path: the file.
        tables: what `collect` returned; it may be damaged or hostile.
        wanted: graph → the names that it reads.

    Raises:
        ArtifactError: the file is no safetensors file, or lacks a tensor.
    """
    objects: dict[tuple[str, bool], Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {graph: {} for graph in wanted}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            known = set(file.keys())
            for graph, names in wanted.items():
                for name in names:
                    key, parameter = _entry(tables, graph, name, known)
                    if (key, parameter) not in objects:
                        objects[key, parameter] = _read_one(file, key, parameter, objects)
                    found[graph][name] = objects[key, parameter]
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path.name} cannot be read: {error}") from error
    return found


def pick(tables: Any, wanted: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return for each graph its tensors by name, as `read` does, of tensors that are in memory by their keys.

    Raises:
        ArtifactError: a tensor is not among them.
    """
    objects: dict[tuple[str, bool], Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {graph: {} for graph in wanted}
    for graph, names in wanted.items():
        for name in names:
            key, parameter = _entry(tables, graph, name, set(tensors))
            plain = tensors[key].detach()
            made = nn.Parameter(plain, requires_grad=False) if parameter else plain
            found[graph][name] = objects.setdefault((key, parameter), made)
    return found


def _entry(tables: Any, graph: str, name: str, known: set[str]) -> tuple[str, bool]:
    try:
        entry = tables[graph][name]
        key, parameter = entry["key"], entry["parameter"]
    except (KeyError, TypeError):
        raise ArtifactError(f"graph {graph!r} reads the tensor {name[:80]!r}, and does not say where it is") from None
    if not isinstance(key, str) or key not in known or not isinstance(parameter, bool):
        raise ArtifactError(f"graph {graph!r} reads the tensor {str(key)[:80]!r}, which the tensor file does not hold")
    return key, parameter


def _read_one(file: Any, key: str, parameter: bool, objects: dict[tuple[str, bool], Tensor]) -> Tensor:
    """Return one tensor in memory of its own: aligned as torch does it, and independent of the file's fate."""
    twin = objects.get((key, not parameter))
    tensor: Tensor = twin.detach() if twin is not None else file.get_tensor(key).clone()
    return nn.Parameter(tensor, requires_grad=False) if parameter else tensor
