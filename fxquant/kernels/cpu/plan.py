"""Runs the calls of a lowered graph in C++: between two kernels of a small batch Python took as long as they."""

from collections.abc import Sequence
from itertools import count
from operator import is_
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import attributes, plan
from fxquant.graph.signature import Signature, SignatureCodeGen
from fxquant.kernels.cpu import native

PLAN = "_fxquant_plan"  # what runs the calls, in generated code


class Runner:
    """The calls of a graph, ready to be run; its constants are held from call to call."""

    def __init__(self, calls: plan.Plan) -> None:
        results = [slot for slot in calls.returned if slot is not None]
        made = torch.classes.fxquant.Plan(len(calls.inputs), calls.calls, results)
        self._bind, self._run = made.bind, made.run
        self._bound: tuple[Tensor, ...] | None = None

    @staticmethod
    def takes(*inputs: Any) -> bool:
        """Say whether a call can run here: of plain tensors, where nothing watches or replaces torch's calls."""
        if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
            return False
        return all(type(each) is Tensor for each in inputs)

    def run(self, inputs: list[Tensor], constants: tuple[Tensor, ...]) -> list[Tensor]:
        """Return what the calls give; constants that are those of the last call cost no more than a look at each."""
        if self._bound is None or not all(map(is_, constants, self._bound)):
            self._bind(list(constants))
            self._bound = constants
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
        self._runner = Runner(read) if read else None
        return attributes.read_directly(body, self._lines(read) if read else ())

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return the names that the generated code reads."""
        runner, self._runner = self._runner, None  # it belongs to the code alone, and goes with it
        return [*super().additional_globals(), *([(PLAN, runner)] if runner else [])]

    def _lines(self, read: plan.Plan) -> Sequence[str]:
        """Return the statements that run a plan and return what it gives."""
        given, constants = read.inputs[: read.given], read.inputs[read.given :]
        found = count()
        leaves = ["None" if slot is None else f"_results[{next(found)}]" for slot in read.returned]
        return (
            f"if {PLAN}.takes({', '.join(given)}):",
            f"    _results = {PLAN}.run([{', '.join(given)}], ({''.join(f'{name}, ' for name in constants)}))",
            f"    {self.generate_output(leaves, repr_fn=str)}",
        )


def run_as_plan(gm: fx.GraphModule) -> None:
    """Let a graph run its calls as a plan from its next compilation on, where the C++ kernels can be used."""
    codegen = gm.graph._codegen
    assert isinstance(codegen, SignatureCodeGen), "graphs come from capture, which gives them a signature"
    if native.available():
        gm.graph.set_codegen(PlannedCodeGen(codegen.signature))
