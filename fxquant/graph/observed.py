"""What the modules of a model are called with, and the products that each does itself, in a run on example inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

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


class _Watch:
    """What the hooks on the modules of `observed` write down while they run under `counter`."""

    def __init__(self, observed: Observed, counter: Any) -> None:
        self.observed, self.counter = observed, counter
        self.inside: list[str] = []
        self.past: dict[str, int] = {}

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.settle()
        self.inside.append(name)
        # the module may change its inputs
        self.observed.calls[name].append(pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.settle()
        self.inside.pop()

    def settle(self) -> None:
        """Put down what was counted since the last event to the innermost module that runs."""
        for op, count in self.counter.get_flop_counts().get("Global", {}).items():
            family = PRODUCTS.get(str(op).rpartition(".")[2], "attention")
            own = self.observed.flops.setdefault(self.inside[-1] if self.inside else "", {})
            if count > self.past.get(str(op), 0):
                own[family] = own.get(family, 0) + count - self.past.get(str(op), 0)
                self.past[str(op)] = count


def observe(host: nn.Module, example: Example) -> Observed:
    """Run the example, and its probes of other sizes, and return what the modules did."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  loads Triton where it is installed

    observed = Observed({name: [] for name, _ in host.named_modules()})
    watch = _Watch(observed, FlopCounterMode(display=False))
    handles = [
        module.register_forward_pre_hook(partial(watch.enter, name), with_kwargs=True)
        for name, module in host.named_modules()
    ]
    handles += [module.register_forward_hook(watch.leave) for module in host.modules()]
    try:
        with watch.counter:
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
