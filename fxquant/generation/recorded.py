"""Steps of a decoder that are replayed: one token of each sequence, on caches of a fixed length."""

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.generation.cache import KINDS, lengthless
from fxquant.generation.fixed import FixedStep
from fxquant.graph.signature import signature_of

Replayed = Callable[[nn.Module], Callable[..., Tensor]]  # a module → what computes the same by a recording of it


class Slot:
    """Caches of a fixed length, their recorded step, and the tensors that showed them last."""

    def __init__(self, step: FixedStep, call: Callable[..., Tensor]) -> None:
        self.step, self.call = step, call
        self._unused = self._uses()
        self._shown: tuple[weakref.ref[Tensor], ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """For how many sequences the caches are, and of how many tokens."""
        return next(iter(self.step.caches.values())).shape[0], self.step.length

    def holds(self, past: dict[str, Tensor]) -> bool:
        """Say whether these tensors are those that showed the caches last."""
        shown = [each() for each in self._shown]
        return bool(shown) and all(a is b for a, b in zip(shown, past.values(), strict=True))

    def is_free(self) -> bool:
        """Say whether nobody has a tensor in the memory of the caches."""
        return self._uses() == self._unused

    def show(self, tokens: int) -> dict[str, Tensor]:
        """Return the caches of so many tokens."""
        found = self.step.filled(tokens)
        self._shown = tuple(weakref.ref(each) for each in found.values())
        return found

    def _uses(self) -> list[int]:
        storages = [kept.untyped_storage() for kept in self.step.caches.values()]
        # What torch's own CUDA graphs ask, too: how many tensors lie in a storage.
        return [torch._C._storage_Use_Count(storage._cdata) for storage in storages]


class RecordedSteps:
    """Calls a step's graph; single tokens behind a cache by a recording, all else as it is.

    A cache that is returned shows the buffers that the next token is written to, behind what is shown. A cache of
    another origin, one that beams have reordered, say, is copied to buffers that nobody looks at; where there are none,
    new ones are made and recorded. So no tensor that is held ever changes.

    Args:
        step: the graph of a decoder's step.
        replayed: what records a module.
        length: for how many tokens buffers are made at first. A longer cache goes to twice as long ones.
        most: how many buffers with their recordings are kept; the ones not used for longest make room.

    Raises:
        FxQuantError: the step cannot be given a cache of fixed length; the text says why.
    """

    def __init__(self, step: fx.GraphModule, replayed: Replayed, length: int, most: int) -> None:
        self._step, self._replayed, self._length, self._most = step, replayed, length, most
        self._lock = threading.RLock()
        self._slots: list[Slot] = []  # the one used last behind the others
        self._addresses: tuple[int, ...] = ()
        leaves = [leaf for leaf in signature_of(step).leaves if leaf.name.startswith(KINDS)]
        self._names = [leaf.name for leaf in leaves]
        FixedStep(step, lengthless(leaves, torch.empty((1, 1), device=_tensors(step)[0].device)), 1)  # or it raises

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedSteps":
        """Return steps of the copied graph, to be recorded."""
        return RecordedSteps(copy.deepcopy(self._step, memo), self._replayed, self._length, self._most)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return what the step's graph returns: logits, and the longer cache."""
        past = {name: inputs[name] for name in self._names}
        tokens = next(iter(past.values())).shape[2]
        if inputs["input_ids"].shape[1] != 1 or tokens == 0:
            found: dict[str, Tensor] = self._step(**inputs)
            return found
        with self._lock, torch.no_grad():
            slot = self._slot(past, tokens)
            given = {name: value for name, value in inputs.items() if name not in past}
            mask = given.pop("attention_mask")
            wide = nn.functional.pad(mask, (0, slot.step.length - mask.shape[1]))
            place = torch.full((1,), tokens, dtype=torch.int64, device=mask.device)
            return {"logits": slot.call(place=place, attention_mask=wide, **given), **slot.show(tokens + 1)}

    def _slot(self, past: dict[str, Tensor], tokens: int) -> Slot:
        """Return buffers that hold a cache and have room for another token."""
        addresses = tuple(tensor.data_ptr() for tensor in _tensors(self._step))
        if addresses != self._addresses:  # the graph was moved, and recordings read where it was
            self._slots.clear()
            self._addresses = addresses
        slot = next((each for each in self._slots if each.holds(past) and tokens < each.step.length), None)
        if slot is None:
            slot = self._free(past, tokens)
            slot.step.fill(past)
        self._slots = [*(each for each in self._slots if each is not slot), slot]
        return slot

    def _free(self, past: dict[str, Tensor], tokens: int) -> Slot:
        """Return buffers of the batch and length for a cache that nobody looks at."""
        length = self._length
        while length <= tokens:
            length *= 2
        batch = next(iter(past.values())).shape[0]
        found = (slot for slot in self._slots if slot.sizes == (batch, length) and slot.is_free())
        slot = next(found, None)
        if slot is None:
            self._slots = self._slots[max(0, len(self._slots) - self._most + 1) :]
            step = FixedStep(self._step, past, length)
            slot = Slot(step, self._replayed(step))
        return slot


def _tensors(step: fx.GraphModule) -> list[Tensor]:
    return [*step.parameters(), *step.buffers()]
