"""What the modules of a model are called with, and the products that each does itself, in a run on example inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxquant.graph.example import Example
from fxquant.graph.modes import inference
from fxquant.graph.reach import probes

Call = tuple[tuple[Any, ...], dict[str, Any]]
# By the family that the ledger counts them under; what is not named are forms of attention.
PRODUCTS = {"mm": "linear", "addmm": "linear", "convolution": "convolution"}


@dataclass
class Observed:
    """By the path of a module: its calls, how many of them the example made, and its own operations by family."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    flops: dict[str, dict[str, int]] = field(default_factory=dict)


def observe(host: nn.Module, example: Example) -> Observed:
    """Run the example, and its probes of other sizes, and return what the modules did."""
    observed = Observed({name: [] for name, _ in host.named_modules()})
    counter = FlopCounterMode(display=False)
    inside: list[str] = []
    past: dict[str, int] = {}

    def settle() -> None:
        """Put down what was counted since the last event to the innermost module that runs."""
        for op, count in counter.get_flop_counts().get("Global", {}).items():
            family = PRODUCTS.get(str(op).rpartition(".")[2], "attention")
            own = observed.flops.setdefault(inside[-1] if inside else "", {})
            if count > past.get(str(op), 0):
                own[family] = own.get(family, 0) + count - past.get(str(op), 0)
                past[str(op)] = count

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            settle()
            inside.append(name)
            # the module may change its inputs
            observed.calls[name].append(pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))

        return hook

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        settle()
        inside.pop()

    handles = [module.register_forward_pre_hook(enter(name), with_kwargs=True) for name, module in host.named_modules()]
    handles += [module.register_forward_hook(leave) for module in host.modules()]
    try:
        with counter:
            _run(host, example, example.tensors)
        observed.times |= {name: len(found) for name, found in observed.calls.items()}
        for probe in probes(example):
            _try(host, example, probe, observed)
    finally:
        for handle in handles:
            handle.remove()
    return observed


def _try(host: nn.Module, example: Example, probe: Sequence[Tensor], observed: Observed) -> None:
    """Observe a probe, if the model takes it: a size that it refuses says nothing about its modules."""
    before = {name: len(found) for name, found in observed.calls.items()}
    try:
        _run(host, example, probe)
    except Exception:  # models raise anything
        for name, size in before.items():
            del observed.calls[name][size:]


def _run(host: nn.Module, example: Example, tensors: Sequence[Tensor]) -> None:
    args, kwargs = example.arguments(tensors)
    with inference(host):
        host(*args, **kwargs)
