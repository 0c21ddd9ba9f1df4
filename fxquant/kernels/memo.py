"""What is derived from a weight, kept as long as the weight itself and made anew when it was changed in place.

Graphs hold plain integer tensors, which can be copied and saved; what an engine of torch wants instead, its own packed
weights, lives here.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")
State = tuple[int, ...]


class Memo(Generic[T]):
    """One derived thing for each weight, as its other tensors (scale, bias) last were."""

    def __init__(self) -> None:
        # Weight → (state of all tensors, what was derived, the others). Holding these keeps their identity from being
        # used again.
        self._made = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._made)

    def get(self, weight: Tensor, others: tuple[Tensor | None, ...], make: Callable[[], T]) -> T:
        """Return what `make` gives for a weight and the others: the same object until one of them is changed."""
        state = (*_state(weight), *(part for other in others for part in (id(other), *_state(other))))
        entry: tuple[State, T, object] | None = self._made.get(weight)  # type: ignore[no-untyped-call]
        if entry is not None and entry[0] == state:
            return entry[1]
        made = make()
        self._made[weight] = (state, made, others)
        return made


def _state(tensor: Tensor | None) -> State:
    if tensor is None:
        return ()
    # Tensors made under inference_mode count no versions.
    return -1 if tensor.is_inference() else tensor._version, tensor.data_ptr()
