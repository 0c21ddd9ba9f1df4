"""A batch normalisation at inference is an affine map of each channel: of a linear's or convolution's own outputs.

y = (conv(x, w) + b − μ) · s + β,   s = γ / √(σ² + eps)      →      conv(x, s·w) + ((b − μ)·s + β)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import sizes

aten = torch.ops.aten
CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
}
_SOURCES = {aten.linear.default, *CONVOLUTIONS}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


@dataclass(frozen=True)
class FoldBatchNorms:
    """Fold batch normalisations into the linear or convolution whose result they normalise.

    The folded constants are computed in float64 and rounded once; each output is within a few roundings of what it was.
    """

    name: ClassVar[str] = "fold_batch_norms"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "fold_weights")

    def apply(self, gm: fx.GraphModule) -> int:
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
            # asked of each in its turn: a normalisation of a normalised result reads the convolution, too, by then
            if obstacle(node) is None:
                fold(gm, node)
                count += 1
        return count


def obstacle(node: fx.Node) -> str | None:
    """Return why a batch normalisation cannot be folded into what it reads, or None where it can."""
    source, *constants = node.args[:5]
    if node.args[5] is not False:
        return "it normalises by the batch's own statistics (training)"
    if not isinstance(source, fx.Node) or source.target not in _SOURCES:
        found = f"%{source.name} ({source.target})" if isinstance(source, fx.Node) else repr(source)
        why = "whose weight has its channels on another axis" if getattr(source, "target", None) in _TRANSPOSED else ""
        return f"it reads {found}, {why or 'expected a linear or a convolution'}"
    if len(source.users) > 1:
        return f"%{source.name} is also read by %{next(user for user in source.users if user is not node).name}"
    if source.target is aten.linear.default and len(sizes(source) or ()) != 2:
        return f"it normalises axis 1, and the features of %{source.name} are the last of {len(sizes(source) or ())}"
    parts = (*source.args[1:3], *constants)
    computed = [part for part in parts if part is not None and not edit.is_constant(part)]
    return f"{computed[0]} is no constant" if computed else None


def fold(gm: fx.GraphModule, node: fx.Node) -> None:
    """Fold a batch normalisation that has no obstacle."""
    source = node.args[0]
    assert isinstance(source, fx.Node), "a normalisation without an obstacle reads a linear or a convolution"
    weight, bias = _folded(gm, source, node)
    place: Any = source.args[1]
    name = str(place.target)
    edit.set_argument(source, 1, edit.add_constant(gm, f"{name}_fused", weight, place))
    edit.set_argument(source, 2, edit.add_constant(gm, f"{name.removesuffix('weight')}bias_fused", bias, place))
    edit.replace(node, source)


def _folded(gm: fx.GraphModule, source: fx.Node, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias that compute the normalised result."""

    def read(value: Any, default: float) -> Tensor:
        return edit.get_tensor(gm, value).detach().double() if value is not None else torch.tensor(default).double()

    weight, bias = read(source.args[1], 0), read(source.args[2], 0)
    gamma, beta, mean, variance = (
        read(value, default) for value, default in zip(norm.args[1:5], (1, 0, 0, 1), strict=True)
    )
    eps: Any = norm.args[7]
    scale = (gamma / (variance + eps).sqrt()).expand(len(weight))
    dtype = edit.get_tensor(gm, source.args[1]).dtype  # type: ignore[arg-type]
    wide = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight * wide).to(dtype), ((bias - mean) * scale + beta).to(dtype)
