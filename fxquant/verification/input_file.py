"""Inputs of graphs from a file of arrays, `.npz` or `.safetensors`, by the names that the graphs' signatures have."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx

from fxquant.errors import DataError, InputError, suggest
from fxquant.graph import structure
from fxquant.graph.signature import signature_of

SUFFIXES = (".npz", ".safetensors")


def read_inputs(path: str | Path, graphs: Mapping[str, fx.GraphModule]) -> dict[str, tuple[Tensor, ...]]:
    """Return for each graph the values of its placeholders.

    Args:
        path: a file of arrays, each called as the graph's input, for one of several graphs "graph.input". Integers of
            other widths than the graph's are converted.
        graphs: by name, "" for a graph that is alone.

    Raises:
        DataError: the file is missing, damaged or of another kind, or lacks an input, or has one that no graph takes.
        InputError: an input has another type or shape than the graph was captured for.
    """
    place = Path(path)
    arrays = _read(place)
    known = {_key(name, leaf.name): None for name, gm in graphs.items() for leaf in signature_of(gm).leaves}
    for key in arrays:
        if key not in known:
            raise DataError(f"{place} has an array {key!r}, which is no input; {suggest(key, known)}")
    missing = [key for key in known if key not in arrays]
    if missing:
        raise DataError(f"{place} lacks {', '.join(missing)}: expected an array for each of {', '.join(known)}")
    return {name: _of_graph(place, name, gm, arrays) for name, gm in graphs.items()}


def _key(graph: str, name: str) -> str:
    return f"{graph}.{name}" if graph else name


def _of_graph(place: Path, name: str, gm: fx.GraphModule, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    signature = signature_of(gm)
    given = []
    for leaf in signature.leaves:
        value = arrays[_key(name, leaf.name)]
        integers = not (
            value.is_floating_point() or leaf.dtype.is_floating_point or torch.bool in (value.dtype, leaf.dtype)
        )
        given.append(value.to(leaf.dtype) if integers else value)
    try:
        found: tuple[Tensor, ...] = signature.flatten((), structure.build(signature.inputs, given))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return found


def _read(place: Path) -> dict[str, Tensor]:
    if place.suffix not in SUFFIXES:
        raise DataError(f"{place}: expected a file that ends in {' or '.join(SUFFIXES)}, with an array for each input")
    if not place.is_file():
        raise DataError(f"{place}: there is no such file; expected one with an array for each input")
    try:
        if place.suffix == ".safetensors":
            return load_file(place)
        with np.load(place, allow_pickle=False) as data:
            return {name: torch.from_numpy(data[name]) for name in data.files}
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(
            f"{place} cannot be read as {place.suffix[1:]} ({error}): it is damaged, or of another kind"
        ) from None
