"""Models whose forward takes and returns flat tensors, as an export needs it, and what their graphs must keep to."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import CaptureError
from fxquant.generation.skeleton import sharing
from fxquant.graph import edit
from fxquant.graph.capture import capture_whole
from fxquant.graph.checks import checked_example
from fxquant.graph.signature import SignatureCodeGen, signature_of

Flat = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]


def capture_flat(model: nn.Module, flat: Flat, inputs: dict[str, Tensor], lengths: Sequence[str]) -> fx.GraphModule:
    """Return the graph of `flat`, called with a copy of the model and these named tensors.

    The copy's own forward is `flat`; that of the model's class is called as a function of the class.

    Sizes may differ from the example's from 0 on: the batch, and the length of each input in `lengths`.

    Raises:
        CaptureError: it cannot be captured, or with fixed sizes only.
    """
    own = type(model)

    def forward(self: Any, **given: Tensor) -> dict[str, Tensor]:
        return flat(self, given)

    kind = inspect.Parameter
    parameters = [kind("self", kind.POSITIONAL_ONLY), *(kind(name, kind.KEYWORD_ONLY) for name in inputs)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    host = sharing(model)
    host.__class__ = type(own.__name__, (own,), {"forward": forward})
    # Limits of sizes that an export only assumes are dropped below; those that may not be are errors there.
    gm, _ = capture_whole(host, checked_example(host, inputs), True, lambda *_: None)
    _drop_dead(gm)
    _free(gm, lengths)
    return gm


def _drop_dead(gm: fx.GraphModule) -> None:
    """Erase what no output needs, dropouts among it, which torch keeps for the random numbers that they draw."""
    gm.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _writes(node))
    edit.sweep(gm)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _free(gm: fx.GraphModule, lengths: Sequence[str]) -> None:
    """Drop the least sizes that an export derives from its assumption of sizes of two and more.

    The sum of two lengths, say, would have to be 4, and one token after an empty cache be refused.
    """
    signature = signature_of(gm)
    for leaf in signature.leaves:
        length = leaf.shape[-2 if len(leaf.shape) == 4 else -1]
        if isinstance(leaf.shape[0], int) or (leaf.name in lengths and isinstance(length, int)):
            found = f"{leaf.name!r} has the fixed shape {leaf.shape}"
            raise CaptureError(f"the model's decoding step cannot be captured with free sizes: {found}")
    ranges = {symbol: (0, most) for symbol, (_, most) in signature.ranges.items() if most is not None}
    gm.graph.set_codegen(SignatureCodeGen(replace(signature, ranges=ranges)))
    gm.recompile()


def repeated(ids: Tensor, rows: int, length: int) -> Tensor:
    """Return integers (batch, sequence) `rows` times, with at least `length` columns."""
    return ids.repeat(rows, -(-length // ids.shape[1]))


@torch.no_grad()
def differs(found: Tensor, expected: Tensor, places: Tensor) -> str | None:
    """Return how far logits are off where `places` is 1, None where it is rounding alone."""
    off = float(((found - expected).abs() * places.unsqueeze(-1)).max())
    allowed = 1e-3 * float(expected.abs().max()) + 1e-5
    return f"logits are off by {off:.2g}, of at most {allowed:.2g} that rounding explains" if off > allowed else None


def generation_config(model: Any) -> dict[str, Any]:
    """Return how a model generates by default, as JSON-able data."""
    found: dict[str, Any] = json.loads(json.dumps(model.generation_config.to_dict(), default=str))
    return found


def class_of(output: Any) -> str:
    """Return the name by which `calls.output` finds the class of a model's output."""
    return f"{type(output).__module__}.{type(output).__qualname__}"
