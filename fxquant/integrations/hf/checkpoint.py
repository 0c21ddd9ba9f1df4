"""A quantized model in a checkpoint of transformers: the tensors of an artifact, and its graphs as one more tensor.

    fxquant.graph_json        uint8, the text of a JSON object: {"model": …, "tensors": …, "artifact": …}
    fxquant.tensors.<key>     each tensor once, under its key in the artifact

They are written to safetensors shards by `save_pretrained` and read from them by `from_pretrained`, which know nothing
of graphs. No float weights are needed to load it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxquant import artifact
from fxquant.backends import Backend
from fxquant.errors import ArtifactError
from fxquant.integrations.hf.loss import KINDS
from fxquant.integrations.hf.model import CHILD, Quantized, strip

_TEXT, _TENSORS = "graph_json", "tensors"
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of its graphs: the text's contents and length, and the tensors of which it has values."""

    head: dict[str, Any]
    length: int
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]


def state_of(model: nn.Module, quantized: Quantized) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint of a quantized model holds, by name."""
    document, tensors = artifact.describe(quantized.graph)
    head = {
        "model": {"class": type(model).__name__, "defaults": quantized.defaults, "loss": quantized.loss},
        "tensors": {
            key: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for key, tensor in tensors.items()
        },
        "artifact": document,
    }
    text = torch.frombuffer(bytearray(json.dumps(head, separators=(",", ":")).encode()), dtype=torch.uint8)
    # those without values would share one address, which transformers takes for tied weights
    filled = {key: tensor for key, tensor in tensors.items() if tensor.numel()}
    return {f"{CHILD}.{_TEXT}": text, **{f"{CHILD}.{_TENSORS}.{key}": tensor for key, tensor in filled.items()}}


def read_stored(files: Iterable[str] | None, cls: type) -> Stored:
    """Return what the files of a checkpoint hold of graphs, checked before anything is loaded.

    Raises:
        ArtifactError: they hold none, a tensor is missing or of another shape, or they are of another class.
    """
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    text = None
    paths = [Path(each) for each in files or ()]
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, the file is no dict
                    if name == f"{CHILD}.{_TEXT}":
                        text = bytes(file.get_tensor(name).numpy())
                    elif name.startswith(f"{CHILD}.{_TENSORS}."):
                        part = file.get_slice(name)
                        key = name.removeprefix(f"{CHILD}.{_TENSORS}.")
                        shapes[key] = (_DTYPES[part.get_dtype()], tuple(part.get_shape()))
        except (SafetensorError, OSError, KeyError) as error:
            raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from None
    place = paths[0].parent if paths else Path("the checkpoint")
    if text is None:
        raise ArtifactError(
            f"{place} says quant_method = 'fxquant' in config.json, and its weights hold no {CHILD}.{_TEXT}: expected "
            "what save_pretrained writes of a model that fxquant quantized, in safetensors files"
        )
    head = _parsed(text, place)
    _check(head, shapes, cls, place)
    return Stored(head, len(text), shapes)


def make_room(model: Any, stored: Stored) -> None:
    """Turn the skeleton of a model into one that takes the stored tensors instead of its own."""
    strip(model)
    holder = nn.Module()
    holder.register_buffer(_TEXT, torch.empty(stored.length, dtype=torch.uint8, device="meta"))
    holder.add_module(_TENSORS, nn.Module())
    for key, (dtype, shape) in stored.shapes.items():
        *parents, leaf = key.split(".")
        place: nn.Module = holder.get_submodule(_TENSORS)
        for part in parents:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_buffer(leaf, torch.empty(shape, dtype=dtype, device="meta"))
    model.add_module(CHILD, holder)


def restore(model: Any, stored: Stored, backend: Backend) -> Quantized:
    """Return the graphs of a checkpoint on the tensors that a model was loaded with, lowered for a backend.

    Raises:
        ArtifactError: the checkpoint was altered.
    """
    holder = model.get_submodule(CHILD)
    tensors = {name: tensor.clone() for name, tensor in holder.get_submodule(_TENSORS).named_buffers()}
    device = next(iter(tensors.values())).device
    for key, (dtype, shape) in _table(stored.head).items():
        if key not in tensors:
            tensors[key] = torch.empty(shape, dtype=dtype, device=device)
    strip(holder)
    graph = artifact.rebuild(stored.head["artifact"], tensors, backend)
    facts = stored.head["model"]
    return Quantized(graph, facts["defaults"], facts["loss"])


def _parsed(text: bytes, place: Path) -> dict[str, Any]:
    """Return the contents of the text, of the form that `state_of` writes, or raise `ArtifactError`."""
    try:
        head = json.loads(text)
        facts, defaults = head["model"], head["model"]["defaults"]
        good = isinstance(facts["class"], str) and (facts["loss"] is None or facts["loss"] in KINDS)
        good = good and all(type(value) is int for value in defaults.values()) and "artifact" in head
        _table(head)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        good = False
    if not good:
        raise ArtifactError(
            f"{place}: {CHILD}.{_TEXT} is not what fxquant writes: it was altered; save the model again"
        )
    return head  # type: ignore[no-any-return]


def _table(head: Mapping[str, Any]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor, as the text states them."""
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
    return {key: (dtypes[dtype], tuple(map(int, shape))) for key, (dtype, shape) in head["tensors"].items()}


def _check(head: Mapping[str, Any], shapes: Mapping[str, Any], cls: type, place: Path) -> None:
    made = head["model"]["class"]
    if made != cls.__name__:
        raise ArtifactError(
            f"{place} holds a quantized {made}, a graph of its whole forward, and was loaded as a {cls.__name__}: load "
            f"it as a {made}, or quantize a {cls.__name__} from the float checkpoint"
        )
    for key, stated in _table(head).items():
        found = shapes.get(key)
        if found is None and 0 in stated[1]:
            continue
        if found != stated:
            dtype, shape = stated
            what = "is missing" if found is None else f"is {found[0]} of shape {found[1]}"
            raise ArtifactError(
                f"{place}: tensor {CHILD}.{_TENSORS}.{key} {what}, and its graph reads {dtype} of shape {shape}: the "
                "checkpoint is incomplete or was altered; copy it again, or save the model again"
            )
