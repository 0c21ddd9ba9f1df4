"""The folder of a checkpoint: its configuration, and the tensors of its safetensors files, found before one is read."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxquant.errors import DataError
from fxquant.evaluation.pretrained import read_config

INDEX = "model.safetensors.index.json"
_DTYPES = {
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, and what its file says of it."""

    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """A checkpoint in Hugging Face's layout: `config` is config.json, `tensors` where each tensor lies."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Place]

    def where(self, name: str) -> str:
        """Return file and name of a tensor, for messages."""
        return f"{self.tensors[name].file if name in self.tensors else self.path}: {name}"

    def get(self, name: str) -> Tensor:
        """Return one tensor."""
        with _reading(self.tensors[name].file), safe_open(self.tensors[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def take(self, name: str, dtypes: Sequence[torch.dtype], shape: tuple[int, ...] | None = None) -> Tensor:
        """Return one tensor, or raise `DataError` where it is missing, of another dtype or of another shape."""
        place = self.tensors.get(name)
        if place is None:
            raise DataError(f"{self.path}: the tensor {name} is missing from the safetensors files")
        if place.dtype not in dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise DataError(f"{self.where(name)} is {place.dtype}: expected {known}")
        if shape is not None and place.shape != shape:
            raise DataError(f"{self.where(name)} has shape {place.shape}: expected {shape}")
        return self.get(name)


def open_folder(path: str | Path) -> Folder:
    """Return what a checkpoint's folder holds.

    Raises:
        DataError: it, its config.json or a file of weights is missing or damaged.
    """
    folder = Path(path)
    config = read_config(folder)
    tensors: dict[str, Place] = {}
    for file in _files(folder):
        with _reading(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118, the file is no dict
                part = opened.get_slice(name)
                tensors[name] = Place(file, _DTYPES.get(part.get_dtype()), tuple(part.get_shape()))
    return Folder(folder, config, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or raise `DataError`."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}: expected a JSON object")
    return data


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise DataError(f"{folder} has no *.safetensors: expected the weights of a checkpoint in that format")
        return found
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise DataError(f"{index}: weight_map is missing: expected the file of each tensor")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"{index} names the file {name[:80]!r}, which is not in the folder: copy the checkpoint again"
            )
    return [folder / name for name in names]


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is damaged or incomplete: {error}") from None
