"""The calls that a program makes of its graphs, so that each of them can be compared by itself."""

from typing import Any

import torch
from torch import fx

from fxquant.evaluation.layers import Call
from fxquant.graph import edit
from fxquant.program import Program


class CallRecorder:
    """A copy of a program, on the same tensors, that takes down what it calls its graphs with.

    Raises:
        ConfigError: the program lacks the model whose own code calls its graphs.
    """

    def __init__(self, program: Program) -> None:
        self._found: list[tuple[str, Call]] = []
        self._program = program.map(edit.clone)
        for name, gm in self._program.graphs.items():
            gm.register_forward_pre_hook(self._recording(name), with_kwargs=True)

    def calls(self, call: Call) -> list[tuple[str, Call]]:
        """Return the name of the graph and the arguments of each call that a call of the program leads to."""
        self._found.clear()
        with torch.no_grad():
            self._program(*call[0], **call[1])
        return list(self._found)

    def _recording(self, name: str) -> Any:
        def record(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._found.append((name, (args, kwargs)))

        return record
