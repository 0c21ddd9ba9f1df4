"""Rotary position embeddings, spelled out in six ops or more → `fxquant::rotary`.

    x·cos + cat(−x₂, x₁)·sin           x₁, x₂ the halves of x, cut or split off: Llama's and GPT-NeoX's
    x·cos + interleave(−x₂, x₁)·sin    x₁, x₂ its even and its odd features: GPT-J's

over x [B, heads, S, R], with cos and sin the same for all heads. Where x is the first R features of a wider tensor, and
the result is joined to its others, the kernel takes the wider one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.passes.claims import hand_over
from fxquant.passes.unpad import ZERO

aten = torch.ops.aten
ROTARY = torch.ops.fxquant.rotary.default
LAST = (-1, 3)


@dataclass(frozen=True)
class FuseRotary:
    """Replace rotary embeddings in float32 by the kernel, within a few roundings; without C++ kernels none is.

    In a graph that is to run without padding they stay as they are, since `unpad` reads what they are spelled with.
    """

    name: ClassVar[str] = "fuse_rotary"
    after: ClassVar[tuple[str, ...]] = ("lower",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many embeddings became the kernel."""
        count = 0
        wanted = native.available() and edit.marks(gm).get("padded_outputs") != ZERO
        for node in list(gm.graph.nodes) if wanted else ():
            found = _read(node)
            if found is not None:
                _replace(node, found)
                count += 1
        edit.sweep(gm)
        return count


@dataclass(frozen=True)
class _Turned:
    """x·cos + turned(x)·sin; `nodes` compute it and nothing else."""

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool
    nodes: tuple[fx.Node, ...]


def _read(node: fx.Node) -> _Turned | None:
    """Return the embedding whose result is a sum."""
    first, second = [_product(each) for each in node.args[:2]] if _is_sum(node) else (None, None)
    if first is None or second is None:
        return None
    for plain, other in ((first, second), (second, first)):
        for x, cos in (plain, plain[::-1]):
            for turned, sin in (other, other[::-1]):
                found = _source(turned)
                if found is not None and found[0] is x and _fits(x, cos) and _fits(x, sin):
                    return _Turned(x, cos, sin, found[1], (node, *node.all_input_nodes, *found[2]))
    return None


def _is_sum(node: fx.Node) -> bool:
    return node.target is aten.add.Tensor and node.kwargs["alpha"] in (1,)


def _product(node: Any) -> tuple[fx.Node, ...] | None:
    """Return the factors of a product that is read once."""
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor or len(node.users) != 1:
        return None
    factors = tuple(each for each in node.args if isinstance(each, fx.Node))
    return factors if len(factors) == 2 else None


def _fits(x: fx.Node, factors: fx.Node) -> bool:
    """Say whether x is [B, heads, S, R], R known and even, and the factors are [B or 1, 1, S, R]."""
    one, two = edit.info(x), edit.info(factors)
    if one is None or two is None or any(known.dtype is not torch.float32 for known in (one, two)):
        return False
    if len(one.shape) != 4 or len(two.shape) != 4 or one.dynamic[1] or one.dynamic[3] or two.dynamic[1]:
        return False
    same = one.shape[3] == two.shape[3] and not two.dynamic[3] and one.shape[3] % 2 == 0
    return same and two.shape[1] == 1 and (two.shape[2], two.dynamic[2]) == (one.shape[2], one.dynamic[2])


Source = tuple[Any, bool, tuple[fx.Node, ...]]


def _source(turned: fx.Node) -> Source | None:
    """Return x of turned(x), whether its features are interleaved, and the nodes that turn it."""
    if turned.target is aten.cat.default and turned.args[1] in LAST:
        return _parts_of(turned.args[0], False, (turned,))
    stack = turned.args[0] if turned.target in (aten.flatten.using_ints, aten.reshape.default) else None
    if not isinstance(stack, fx.Node) or stack.target is not aten.stack.default or stack.args[1] not in (-1, 4):
        return None
    return _parts_of(stack.args[0], True, (turned, stack)) if _flattened(turned, stack) else None


def _flattened(turned: fx.Node, stack: fx.Node) -> bool:
    """Say whether the last axis of a stack [B, heads, S, R/2, 2] is made one with the one before."""
    one, two = edit.info(stack), edit.info(turned)
    if one is None or two is None or len(two.shape) != 4:
        return False
    return two.shape[3] == 2 * one.shape[3] and not two.dynamic[3] and two.shape[:3] == one.shape[:3]


def _parts_of(parts: Any, interleaved: bool, nodes: tuple[fx.Node, ...]) -> Source | None:
    """Return x of the parts (−second, first) of it."""
    negated, first = parts if len(parts) == 2 else (None, None)
    if not isinstance(negated, fx.Node) or not isinstance(first, fx.Node) or negated.target is not aten.neg.default:
        return None
    second: Any = negated.args[0]
    one, two = _place(first), _place(second)
    if one is None or two is None or any(len(each.users) != 1 for each in (*nodes, negated)):
        return None
    (x, start, step), (other, behind, stride) = one, two
    known = edit.info(x)
    if x is not other or known is None or len(known.shape) != 4 or known.dynamic[3]:
        return None
    wanted = (0, 2, 1, 2) if interleaved else (0, 1, known.shape[3] // 2, 1)
    sources = tuple(node for each in (first, second) for node in (each, *each.all_input_nodes) if node is not x)
    return (x, interleaved, (*nodes, negated, *sources)) if (start, step, behind, stride) == wanted else None


def _place(part: Any) -> tuple[fx.Node, int, int] | None:
    """Return the tensor that a node is half of the last axis of, where the half begins and its step."""
    if not isinstance(part, fx.Node):
        return None
    known = edit.info(part)
    args: Any = part.args
    if part.target is aten.slice.Tensor and args[1] in LAST:
        source, start, step = args[0], args[2] or 0, args[4]
    elif part.target is not None and part.op == "call_function" and args and _is_split(args[0]):
        source, start, step = args[0].args[0], args[1] * (known.shape[-1] if known else 0), 1
    else:
        return None
    whole = edit.info(source)
    half = known is not None and whole is not None and 2 * known.shape[-1] == whole.shape[-1]
    return (source, start, step) if half and isinstance(start, int) else None


def _is_split(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in (aten.split.Tensor, aten.chunk.default) and node.args[2] in LAST


def _replace(node: fx.Node, found: _Turned) -> None:
    whole, x, nodes = node, found.x, found.nodes
    wider = _wider(node, found.x)
    if wider is not None:
        whole, x = wider
        nodes = (whole, *nodes)
    with node.graph.inserting_before(whole):
        args = (x, found.cos, found.sin, found.interleaved)
        new = edit.call(node.graph, ROTARY, args, like=whole, value=edit.info(whole))
    new.meta |= {key: value for key, value in whole.meta.items() if key == "val"}
    hand_over(dict.fromkeys(nodes), new)
    edit.replace(whole, new)


def _wider(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return cat(result, rest of w) and w, where x is the first features of w, or all, and `rest` its others."""
    (join, *others) = node.users or (None,)
    if join is None or others or join.target is not aten.cat.default or join.args[1] not in LAST:
        return None
    parts: Any = join.args[0]
    rest = parts[1] if len(parts) == 2 and parts[0] is node else None
    if not isinstance(rest, fx.Node) or rest.target is not aten.slice.Tensor or rest.args[1] not in LAST:
        return None
    source: Any = x.args[0] if rest.args[0] is not x else x
    known, wide = edit.info(x), edit.info(source) if isinstance(source, fx.Node) else None
    whole = edit.info(join)
    if known is None or wide is None or whole is None or wide.shape[-1] != whole.shape[-1]:
        return None
    own = source is x or (_is_slice(x) and x.args[2] in (0, None))
    return (join, source) if own and _is_slice(rest) and rest.args[::2][:2] == (source, known.shape[-1]) else None


def _is_slice(node: fx.Node) -> bool:
    return node.target is aten.slice.Tensor and node.args[1] in LAST and node.args[4] in (1,)
