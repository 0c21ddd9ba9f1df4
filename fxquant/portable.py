"""The Q/DQ graph that a lowered graph came from, kept beside it so that it can be saved and lowered anew.

It costs no memory of its own. Where a kernel holds a weight packed, and nothing reads it as it was, the kept graph has
a meta tensor in its place, and `portable` unpacks the weight into a copy of the graph when one is asked for.
"""

import weakref
from collections.abc import Iterable

from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.graph.rebuild import tensor_key
from fxquant.kernels.layout import LAYOUTS, Packed, packed_constants

# Where the metadata of a lowered graph holds it: apart from its modules and parameters. Copies, deep ones too, keep it.
_QDQ = "fxquant_qdq"
# Place → its unpacked weight, while that is in use: graphs that share a weight go on sharing it.
_UNPACKED = WeakIdKeyDictionary()


def keep(lowered: fx.GraphModule, qdq: fx.GraphModule) -> None:
    """Let a lowered graph know the Q/DQ graph that it came from, which is its own from then on."""
    lowered.meta[_QDQ] = qdq


def kept(lowered: fx.GraphModule) -> fx.GraphModule:
    """Return the kept graph as it is, with meta tensors for what only a packed weight holds."""
    qdq: fx.GraphModule = lowered.meta[_QDQ]
    return qdq


def portable(gm: fx.GraphModule) -> fx.GraphModule:
    """Return the Q/DQ reference graph that a graph was lowered from; a captured or converted graph is one itself.

    Raises:
        FxQuantError: the graph has observers, or did not come from the stages.
    """
    stage = edit.marks(gm).get("stage")
    if stage == "lowered" and _QDQ in gm.meta:
        return _filled(gm)
    if stage == "prepared":
        raise FxQuantError("a prepared graph has observers and is not portable yet: calibrate it and convert it first")
    if stage not in ("captured", "converted"):
        found = "lowered, and has lost the graph that it came from" if stage else "not made by fxquant"
        raise FxQuantError(f"expected a graph that is captured, converted or lowered; this one is {found}")
    return gm


def _filled(lowered: fx.GraphModule) -> fx.GraphModule:
    """Return the kept graph, or a copy of it with all weights where some are held packed alone."""
    qdq = kept(lowered)
    gaps = {target: tensor for target, tensor in edit.constants(qdq).items() if tensor.is_meta}
    if not gaps:
        return qdq
    known = {id(gaps[target]): packed for target, packed in packed_constants(lowered) if target in gaps}
    full = edit.clone(qdq)
    for target, place in gaps.items():
        if id(place) not in known:
            raise FxQuantError(f"the graph has lost the packed weight of {target}: it cannot be saved or lowered anew")
        edit.set_tensor(full, target, _unpacked(place, known[id(place)]))
    return full


def _unpacked(place: Tensor, packed: Packed) -> Tensor:
    reference = _UNPACKED.get(place)  # type: ignore[no-untyped-call]
    found: Tensor | None = reference() if reference is not None else None
    if found is None:
        found = LAYOUTS[packed.layout](packed.part, place, *packed.arguments)
        _UNPACKED[place] = weakref.ref(found)
    return found


def release(graphs: Iterable[fx.GraphModule]) -> None:
    """Let the kept graphs of lowered graphs drop each weight that the lowered ones hold packed and never plain.

    Graphs that share weights are to be given together: one that needs a plain weight keeps it for all.
    """
    graphs = list(graphs)
    needed = {tensor_key(tensor) for gm in graphs for tensor in edit.constants(gm).values()}
    for gm in graphs:
        keys = {target: tensor_key(tensor) for target, tensor in edit.constants(kept(gm)).items()}
        needed |= set(keys.values()) - {keys[target] for target, _ in packed_constants(gm) if target in keys}
    places: dict[object, Tensor] = {}
    for gm in graphs:
        for target, tensor in edit.constants(kept(gm)).items():
            key = tensor_key(tensor)
            if key not in needed:
                edit.set_tensor(kept(gm), target, places.setdefault(key, tensor.to("meta")))
