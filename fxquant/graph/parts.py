"""Capture of a model's modules one by one, the largest that can be; what cannot stays the model's own code."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import fx, nn

from fxquant.errors import FxQuantError, InputError
from fxquant.graph import edit
from fxquant.graph.calling import name_arguments
from fxquant.graph.capture import check_kept, export_whole
from fxquant.graph.example import Example, forward_parameters, read_example
from fxquant.graph.failure import Failure
from fxquant.graph.observed import Call, Observed, observe
from fxquant.graph.recurrent import STEPWISE
from fxquant.graph.signature import signature_of


@dataclass(frozen=True)
class Kept:
    """A module that stays the model's own code: what it is, why, and the operations of one family that it does."""

    path: str
    kind: str
    reason: str
    family: str
    flops: int


@dataclass
class Parts:
    """What came of a model: the graphs of its captured modules by path, and the modules that stayed."""

    graphs: dict[str, fx.GraphModule] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)


def capture_parts(host: nn.Module, example: Example, failed: Sequence[dict[str, str]]) -> Parts:
    """Capture the modules of a host (graph/host.py), each where what contains it cannot be captured.

    The host is run on the example, and on probes of other sizes where it can: a part is taken only if it accepts every
    call that its module got.
    """
    observed = observe(host, example)
    parts, reasons = Parts(), {"": failed[0]["reason"] if failed else "it cannot be captured whole"}
    _descend(host, "", observed, parts, reasons)
    record = {"rung": "modules", "failed": list(failed)}
    for path, gm in parts.graphs.items():
        _place(gm, path)
        edit.mark(gm, capture={**record, "module": path, "calls": observed.times[path]})
    parts.kept += _kept(host, observed, reasons)
    if parts.graphs:
        edit.mark(next(iter(parts.graphs.values())), kept=[asdict(each) for each in parts.kept] or None)
    return parts


def _descend(module: nn.Module, path: str, observed: Observed, parts: Parts, reasons: dict[str, str]) -> None:
    """Capture the children of a module that is not captured, or what is inside of them."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        calls = observed.calls.get(inner, [])
        if any(parameter.numel() for parameter in child.parameters()):
            found = _part(child, calls) if calls else "it is not called"
            if isinstance(found, fx.GraphModule):
                parts.graphs[inner] = found
                continue
            if calls:
                reasons[inner] = found
            _descend(child, inner, observed, parts, reasons)


def _part(module: nn.Module, calls: Sequence[Call]) -> fx.GraphModule | str:
    """Return the graph of a module that takes all of these calls, or why there is none."""
    if isinstance(module, STEPWISE):
        return "it goes through a sequence step by step"
    args, kwargs = calls[0]
    try:
        named = name_arguments(forward_parameters(module), args, kwargs, "the call that was observed")
        example = read_example(module, named)
        check_kept(module, example)
        gm = export_whole(module, example, dynamic=True)
        if isinstance(gm, Failure):
            return gm.text
        for args, kwargs in calls:
            signature_of(gm).flatten(args, kwargs)
    except InputError as error:
        return f"it is called in different ways: {error}"
    except FxQuantError as error:
        return str(error)
    return gm


def _place(gm: fx.GraphModule, path: str) -> None:
    """Let the nodes know their place in the whole model, which recipes and the ledger name."""
    for node in gm.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            inner = edit.path_of(node)
            edit.mark(node, path=f"{path}.{inner}" if inner else path)


def _kept(host: nn.Module, observed: Observed, reasons: dict[str, str]) -> Iterator[Kept]:
    """Yield the modules that multiply and were not captured, with the operations that they do themselves."""
    for path, reason in reasons.items():
        for family, flops in observed.flops.get(path, {}).items():
            yield Kept(path, type(host.get_submodule(path)).__name__, reason, family, flops)


def parts_of(graphs: Mapping[str, fx.GraphModule]) -> dict[str, fx.GraphModule]:
    """Return captured modules by their paths."""
    return {str(edit.marks(gm)["capture"]["module"]): gm for gm in graphs.values()}
