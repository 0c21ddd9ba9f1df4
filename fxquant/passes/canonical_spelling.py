"""One operator for each meaning, where ATen has several.

- another shape: `view`, `_unsafe_view`, `view_as`, `reshape_as` become `reshape`, which works for any strides
- a change of dtype alone: every `to`, `_to_copy` and `type_as` becomes `to.dtype`
- a transposed matrix: `t`, `numpy_T` of two dimensions become `transpose(0, 1)`
- a matrix product: `mm`, `bmm` become `matmul`
- a convolution whose padding is "valid" or "same" has it in numbers
- an operator of two names, such as `concat` and `cat`, has one
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import computed, dtype_of, has_mutation, sizes, substitute

aten = torch.ops.aten

Respelled = tuple[Any, tuple[Any, ...]]
Speller = Callable[[fx.Node], Respelled | None]


@dataclass(frozen=True)
class UnifySpelling:
    """Rewrite calls into the one spelling of what they compute. Exact.

    A cast keeps its spelling in a graph that writes to tensors, for it might be asked for its copy.
    """

    name: ClassVar[str] = "unify_spelling"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "functionalize")

    def apply(self, gm: fx.GraphModule) -> int:
        spellers = SPELLERS if has_mutation(gm) else {**SPELLERS, **CASTS}
        count = 0
        for node in list(gm.graph.nodes):
            if node.target in SYNONYMS:
                node.target = SYNONYMS[node.target]
                count += 1
            found = spellers[node.target](node) if node.op == "call_function" and node.target in spellers else None
            if found is not None:
                substitute(node, *found)
                count += 1
        return count


def _reshape(node: fx.Node) -> Respelled:
    return aten.reshape.default, (node.args[0], node.args[1])


def _reshape_as(node: fx.Node) -> Respelled | None:
    found = sizes(node)
    if found is None:
        return None
    like = [(node.args[1], axis) for axis in range(len(found))]
    known = zip(found, like, strict=True)
    shape = [size if isinstance(size, int) else computed(node, aten.sym_size.int, of) for size, of in known]
    return aten.reshape.default, (node.args[0], shape)


def _transpose(node: fx.Node) -> Respelled | None:
    return (aten.transpose.int, (node.args[0], 0, 1)) if len(sizes(node) or ()) == 2 else None


def _swap(node: fx.Node) -> Respelled:
    return aten.transpose.int, node.args


def _matrix_transpose(node: fx.Node) -> Respelled | None:
    """Spell a conjugate transpose, too, which for real numbers conjugates nothing."""
    dtype = dtype_of(node)
    real = dtype is not None and not dtype.is_complex and len(sizes(node) or ()) >= 2
    return (aten.transpose.int, (node.args[0], -2, -1)) if real else None


def _softmax(node: fx.Node) -> Respelled:
    return aten.softmax.int, (*node.args, *node.kwargs.values())


def _square(node: fx.Node) -> Respelled:
    return aten.pow.Tensor_Scalar, (node.args[0], 2)


def _padded(node: fx.Node) -> Respelled | None:
    """Spell a convolution's padding: "same" adds d·(k − 1) places to an axis, the odd one behind it."""
    x, weight, bias, stride, padding, dilation, groups = node.args
    kernel = (sizes(weight) or ())[2:]
    if not kernel or not all(isinstance(side, int) for side in kernel):
        return None
    added = [step * (side - 1) * (padding == "same") for step, side in zip(dilation, kernel, strict=True)]  # type: ignore[arg-type]
    if any(places % 2 for places in added):
        behind = [each for places in reversed(added) for each in (0, places % 2)]
        x = computed(node, aten.constant_pad_nd.default, (x, behind))
    default = getattr(aten, f"conv{len(kernel)}d").default
    return default, (x, weight, bias, stride, [places // 2 for places in added], dilation, groups)


def _matmul(node: fx.Node) -> Respelled:
    return aten.matmul.default, (node.args[0], node.args[1])


def _cast(node: fx.Node) -> Respelled | None:
    """Spell a cast to the device and layout that the tensor has already: what is left is its dtype."""
    args = (node.args[0], dtype_of(node), False, False, None)
    if dtype_of(node) is None or (node.target is not aten.to.dtype and not _stays_in_place(node)):
        return None
    return (aten.to.dtype, args) if (node.target, node.args) != (aten.to.dtype, args) else None


def _stays_in_place(node: fx.Node) -> bool:
    before, after = edit.arguments(node)[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return (before.device, before.layout) == (after.device, after.layout)


# What torch offers by a second name, of which export keeps the one that the model's code used.
_NAMES = {"concat": "cat", "concatenate": "cat", "multiply": "mul", "divide": "div", "true_divide": "div"}
_NAMES |= {"subtract": "sub", "negative": "neg", "absolute": "abs", "clip": "clamp", "linalg_matmul": "matmul"}
_NAMES |= {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne"}
_NAMES |= {"special_erf": "erf", "special_expit": "sigmoid"}
SYNONYMS = {
    getattr(getattr(aten, second), overload): getattr(getattr(aten, first), overload)
    for second, first in _NAMES.items()
    for overload in set(getattr(aten, second).overloads()) & set(getattr(aten, first).overloads())
}
SPELLERS: dict[Any, Speller] = {
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.view_as.default: _reshape_as,
    aten.reshape_as.default: _reshape_as,
    aten.t.default: _transpose,
    aten.numpy_T.default: _transpose,
    aten.swapaxes.default: _swap,
    aten.swapdims.default: _swap,
    aten.mT.default: _matrix_transpose,
    aten.mH.default: _matrix_transpose,
    aten.adjoint.default: _matrix_transpose,
    aten.special_softmax.default: _softmax,
    aten.square.default: _square,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.conv1d.padding: _padded,
    aten.conv2d.padding: _padded,
    aten.conv3d.padding: _padded,
}
CASTS: dict[Any, Speller] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.other: _cast,
    aten._to_copy.default: _cast,
    aten.type_as.default: _cast,
}
