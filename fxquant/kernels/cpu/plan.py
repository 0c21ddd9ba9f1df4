"""Runs the calls of a lowered graph in C++: between two kernels of a small batch Python took as long as they."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import attributes, plan
from fxquant.graph.held import Held, hold
from fxquant.graph.signature import Signature, SignatureCodeGen
from fxquant.kernels.cpu import native

PLAN = "_fxquant_plan"  # what runs the calls, in generated code
_PLAIN = frozenset({Tensor})


class Runner:
    """The calls of a graph, ready to be run; its constants are held from call to call."""

    def __init__(self, calls: plan.Plan) -> None:
        results = [slot for slot in calls.returned if slot is not None]
        made = torch.classes.fxquant.Plan(len(calls.inputs), calls.calls, results)
        self._bind, self._run, self._paths = made.bind, made.run, calls.paths
        self._held: Held | None = None

    def run(self, root: fx.GraphModule, inputs: list[Any]) -> list[Tensor] | None:
        """Return what the calls give with the constants of `root`, or None where a call cannot run here.

        That is one with other than plain tensors, or one that something watches: whatever replaces torch's calls.
        """
        if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
            return None
        if not _PLAIN.issuperset(map(type, inputs)):
            return None
        if self._held is None or not self._held.current(root):
            held = hold(root, self._paths)
            self._bind(held.tensors)
            self._held = held
        results: list[Tensor] = self._run(inputs)
        return results

    def __hash__(self) -> int:
        return id(self)  # generated code finds its globals by hash


class PlannedCodeGen(SignatureCodeGen):
    """Generates a forward that runs its calls as a plan, where it can."""

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self._runner: Runner | None = None
        self._body_transformer = self._planned

    def _planned(self, body: list[str]) -> list[str]:
        read = plan.read(body)
        if read is None:
            return attributes.read_directly(body)
        self._runner = Runner(read)
        return attributes.read_directly(body, self._lines(read))

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return the names that the generated code reads."""
        runner, self._runner = self._runner, None  # it belongs to the code alone, and goes with it
        return [*super().additional_globals(), *([(PLAN, runner)] if runner else [])]

    def _lines(self, read: plan.Plan) -> Sequence[str]:
        """Return the statements that run a plan and return what it gives."""
        found = count()
        leaves = ["None" if slot is None else f"_results[{next(found)}]" for slot in read.returned]
        return (
            f"_results = {PLAN}.run(self, [{', '.join(read.inputs[: read.given])}])",
            "if _results is not None:",
            f"    {self.generate_output(leaves, repr_fn=str)}",
        )


def run_as_plan(gm: fx.GraphModule) -> None:
    """Let a graph run its calls as a plan from its next compilation on, where the C++ kernels can be used."""
    codegen = gm.graph._codegen
    assert isinstance(codegen, SignatureCodeGen), "graphs come from capture, which gives them a signature"
    if native.available():
        gm.graph.set_codegen(PlannedCodeGen(codegen.signature))
