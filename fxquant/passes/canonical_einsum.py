"""Sums of products written by index letters → `linear` where a factor is constant, `matmul` where none is (XLNet).

    einsum("ibh,hnd->ibnd", x, W)   =  unflatten(linear(x, W as [N·D, H]), (N, D))
    einsum("ibnd,jbnd->bnij", q, k) =  matmul(q as [B, N, I, D], k as [B, N, D, J])

Letters of both factors and the result are axes of a batch, those of both factors alone are summed over. `tensordot`,
`inner`, `mv`, `addmv`, `addbmm` and `bilinear` are such sums, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import computed, sizes
from fxquant.passes.letter_sums import READERS, Term

aten = torch.ops.aten


@dataclass(frozen=True)
class EinsumToProducts:
    """Rewrite sums of products into `linear` and `matmul`. The same products are summed, maybe in another order.

    Of three and more factors the first two are multiplied first. A diagonal, a letter that is summed within one factor,
    and a letter that broadcasts stay as they are.
    """

    name: ClassVar[str] = "einsum_to_products"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        weights: dict[tuple[str, tuple[int, ...]], fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            found = READERS[node.target](node) if node.op == "call_function" and node.target in READERS else None
            if found is not None and _is_plain(found.terms, found.result):
                product = _rewrite(gm, node, found.terms, found.result, weights)
                if found.addend is not None:
                    product = computed(node, aten.add.Tensor, (product, found.addend))
                edit.replace(node, product)
                count += 1
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _is_plain(terms: Sequence[Term], result: str) -> bool:
    """Say whether each letter stands for one size, once in a factor, and is summed over only between factors."""
    found: dict[str, list[Any]] = {}
    for term in terms:
        shape = sizes(term.node) or ()
        if len(shape) != len(term.letters) or len(set(term.letters)) != len(term.letters):
            return False
        for letter, size in zip(term.letters, shape, strict=True):
            found.setdefault(letter, []).append(size)
    one_size = all(len(set(each)) == 1 for each in found.values())
    kept = all(len(each) > 1 or letter in result for letter, each in found.items())
    return one_size and kept and set(result) <= set(found) and len(set(result)) == len(result)


def _rewrite(gm: fx.GraphModule, node: fx.Node, terms: Sequence[Term], result: str, weights: Any) -> Any:
    """Return the result of all factors, multiplied from the left."""
    first, *rest = terms
    for place, second in enumerate(rest):
        later = set(result).union(*(each.letters for each in rest[place + 1 :]))
        kept = "".join(letter for letter in dict.fromkeys(first.letters + second.letters) if letter in later)
        swapped = edit.is_constant(first.node) and not edit.is_constant(second.node)
        a, b = (second, first) if swapped else (first, second)
        first = _multiply(gm, node, a, b, result if place == len(rest) - 1 else kept, weights)
    return _ordered(node, first, result)


def _multiply(gm: fx.GraphModule, node: fx.Node, a: Term, b: Term, kept: str, weights: Any) -> Term:
    """Return the product of two factors with the letters `kept`, in whatever order comes cheapest."""
    shared = [letter for letter in a.letters if letter in b.letters]
    batch = "".join(letter for letter in kept if letter in shared)
    summed = "".join(letter for letter in shared if letter not in kept)
    rows = "".join(letter for letter in a.letters if letter not in shared)
    columns = "".join(letter for letter in b.letters if letter not in shared)
    left = _merged(node, _ordered(node, a, batch + rows + summed), len(batch + rows), len(summed))
    if edit.is_constant(b.node) and not batch:
        product = computed(node, aten.linear.default, (left, _weight(gm, b, columns, summed, weights), None))
        apart = len(columns) == 1
    else:
        left = _merged(node, left, len(batch), len(rows))
        product = computed(node, aten.matmul.default, (left, _right(node, b, batch, summed, columns)))
        apart = len(rows) == len(columns) == 1
    if not apart:
        shape = [_size(node, a, letter) for letter in batch + rows] + [_size(node, b, letter) for letter in columns]
        product = computed(node, aten.reshape.default, (product, shape))
    return Term(product, batch + rows + columns)


def _right(node: fx.Node, b: Term, batch: str, summed: str, columns: str) -> Any:
    """Return a right factor [*batch, K, N]; as a transpose where its own last axis is the one summed over."""
    if len(summed) == len(columns) == 1 and b.letters[-1] == summed:
        return computed(node, aten.transpose.int, (_ordered(node, b, batch + columns + summed), -2, -1))
    right = _ordered(node, b, batch + summed + columns)
    right = _merged(node, right, len(batch + summed), len(columns))
    return _merged(node, right, len(batch), len(summed))


def _weight(gm: fx.GraphModule, b: Term, columns: str, summed: str, weights: dict[Any, fx.Node]) -> fx.Node:
    """Return the constant [N, K] of a factor, stored when it is first asked for."""
    target, order = str(b.node.target), tuple(b.axes(columns + summed))
    key = (target, order, len(columns))
    if key not in weights:
        tensor = edit.get_tensor(gm, b.node).detach().permute(order)
        matrix = tensor.reshape(tensor.shape[: len(columns)].numel(), -1).contiguous()
        weights[key] = edit.add_constant(gm, f"{target}_matrix", matrix, b.node)
    return weights[key]


def _ordered(node: fx.Node, term: Term, letters: str) -> Any:
    """Return a factor with its axes in the order of the letters."""
    if term.letters == letters:
        return term.node
    return computed(node, aten.permute.default, (term.node, term.axes(letters)))


def _merged(node: fx.Node, value: fx.Node, start: int, count: int) -> Any:
    """Return a tensor in which `count` axes from `start` on are one; of size one where there are none."""
    if count == 0:
        return computed(node, aten.unsqueeze.default, (value, start))
    return computed(node, aten.flatten.using_ints, (value, start, start + count - 1)) if count > 1 else value


def _size(node: fx.Node, term: Term, letter: str) -> Any:
    return computed(node, aten.sym_size.int, (term.node, term.letters.index(letter)))
