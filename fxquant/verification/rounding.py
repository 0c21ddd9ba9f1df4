"""One output step: how far outputs move where activations are rounded up or down by chance and not to the nearest.

Two runtimes that compute the same graph add floats in different orders. Where a value lies near the middle between two
integers they may round it to either, and later layers carry that on. So results may differ although both are right, by
less than they do if every value falls to either side: rounding is stochastic then, ⌊x/S + u⌋ with u uniform in [0, 1).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.numerics import along
from fxquant.passes.qdq_nodes import QUANTIZE

DRAWS = 4
# Beyond rounding, of the largest output: what float32 sums in another order may make of a deep graph.
FLOAT_SHARE = 1e-4

Shifted = Callable[[tuple[Any, ...], torch.Generator], Any]


def shifted(x: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Return x + S·(u − ½), which to the nearest rounds as x does by chance; `scale` broadcasts against `x`."""
    chance = torch.rand(x.shape, generator=generator) - 0.5
    return x + scale * chance.to(x.device)


def _quantize(args: tuple[Any, ...], generator: torch.Generator) -> Any:
    x, scale, zero_point, axis, *rest = args
    return QUANTIZE(shifted(x, along(scale, axis, x.ndim), generator), scale, zero_point, axis, *rest)


# What rounds by chance in the place of each op that quantizes; dialects of other runtimes add their own.
STOCHASTIC: dict[Any, Shifted] = {QUANTIZE: _quantize}


class _ByChance(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, seed: int) -> None:
        super().__init__(gm)
        self.generator = torch.Generator().manual_seed(seed)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in STOCHASTIC:
            return STOCHASTIC[target](args, self.generator)
        return super().call_function(target, args, kwargs)


def output_steps(gm: fx.GraphModule, inputs: Sequence[Tensor], outputs: Sequence[Any]) -> tuple[float, ...]:
    """Return for each output the largest change that rounding by chance made, and at least 1e-4 of its largest value.

    Args:
        gm: a Q/DQ graph, or one in a dialect of it.
        inputs: values of its placeholders.
        outputs: what it returns for them.
    """
    drawn = [_ByChance(gm, seed).run(*inputs, enable_io_processing=False) for seed in range(DRAWS)]
    return tuple(
        max([FLOAT_SHARE * _largest(output), *(_largest(draw[place] - output) for draw in drawn)])
        if isinstance(output, Tensor) and output.is_floating_point()
        else 0.0
        for place, output in enumerate(outputs)
    )


def _largest(values: Tensor) -> float:
    """Return the largest finite absolute value; masks hold infinities."""
    return float(values.abs().nan_to_num(0.0, 0.0, 0.0).max()) if values.numel() else 0.0
