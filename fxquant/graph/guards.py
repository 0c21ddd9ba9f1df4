"""Conditions on the sizes of a graph's inputs under which it is right, as JSON-able trees.

A tree is an int, `["size", input, dimension]`, or `[operator, operand, …]`. It is read from the conditions that an
export states as text, and evaluated by walking it: no text is ever run.
"""

import ast
import operator
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

from fxquant.errors import ArtifactError

Tree = int | list[Any]
Shapes = Sequence[Sequence[int]]
Pair = tuple[tuple[int, int], tuple[int, int]]

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_CALLS = ("max", "min")
_ANY_NUMBER = ("+", "*", "and", "or", *_CALLS)  # operators that take any number of operands; the others take two
_EVALUATE: dict[str, Callable[[list[int]], int]] = {
    "+": sum,
    "*": prod,
    "-": lambda v: operator.sub(*v),
    "//": lambda v: operator.floordiv(*v),
    "%": lambda v: operator.mod(*v),
    "==": lambda v: operator.eq(*v),
    "!=": lambda v: operator.ne(*v),
    "<": lambda v: operator.lt(*v),
    "<=": lambda v: operator.le(*v),
    ">": lambda v: operator.gt(*v),
    ">=": lambda v: operator.ge(*v),
    "and": all,
    "or": any,
    "max": max,
    "min": min,
}
_OF_TWO: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "*": operator.mul,
    "-": operator.sub,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "max": max,
    "min": min,
}


def parse(text: str) -> Tree | None:
    """Return the tree of one condition in the text of torch.export, such as `L['leaves'][0].size()[1] % 2 == 0`.

    Returns None where it says something that a tree cannot.
    """
    try:
        return _tree(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _tree(node: ast.expr) -> Tree:
    tree: Tree
    match node:
        case ast.Constant(value=int(value)):
            tree = value
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            tree = [_COMPARE[type(op)], _tree(left), _tree(right)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            tree = [_BINARY[type(op)], _tree(left), _tree(right)]
        case ast.BoolOp(op=op, values=values):
            tree = ["and" if isinstance(op, ast.And) else "or", *map(_tree, values)]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            tree = ["*", -1, _tree(operand)]
        case ast.Call(func=ast.Name(id=name), args=args) if name in _CALLS:
            tree = [name, *map(_tree, args)]
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=ast.Subscript(slice=ast.Constant(value=int(leaf))), attr="size")),
            slice=ast.Constant(value=int(dimension)),
        ):
            tree = ["size", leaf, dimension]
        case _:
            raise ValueError(f"{ast.dump(node)} has no tree")
    return tree


def is_assumed(tree: Tree) -> bool:
    """Say whether a condition only excludes 0 or 1.

    An export assumes that no size is 0 or 1; ATen's broadcasting makes that good, so these are not enforced.
    """
    return isinstance(tree, list) and tree[0] == "!=" and tree[2] in (0, 1)


def is_plain(tree: Tree) -> bool:
    """Say whether a condition bounds one size, or makes two equal: shapes and ranges state these themselves."""
    if not isinstance(tree, list) or not all(isinstance(part, int) or part[0] == "size" for part in tree[1:]):
        return False
    return tree[0] == "==" or (tree[0] in ("<", "<=", ">", ">=") and any(isinstance(part, int) for part in tree[1:]))


def always_holds(tree: Tree) -> bool:
    """Say whether a condition holds for sizes of 0 and more, as signs alone show: `min(a, a + b) == a`, say."""
    if not isinstance(tree, list) or len(tree) != 3:
        return False
    kind, first, second = tree
    if kind == "==" and isinstance(first, list) and first[0] == "min" and second in first[1:]:
        return all(_never_less(other, second) for other in first[1:])
    return (kind == ">=" and _never_less(first, second)) or (kind == "<=" and _never_less(second, first))


def equal_sizes(tree: Tree) -> Pair | None:
    """Return the two sizes, (input, dimension) each, that a condition makes equal, as `b + a == a + c` does b and c."""
    if not isinstance(tree, list) or tree[0] != "==":
        return None
    found = {sizes: factor for sizes, factor in (_terms(["-", *tree[1:]]) or {}).items() if factor}
    if sorted(found.values()) != [-1, 1] or any(len(sizes) != 1 for sizes in found):
        return None
    first, second = ((leaf, dimension) for ((_, leaf, dimension),) in found)
    return first, second


def _never_less(greater: Tree, less: Tree) -> bool:
    terms = _terms(["-", greater, less])
    return terms is not None and all(factor >= 0 for factor in terms.values())


def _terms(tree: Tree) -> Counter[Any] | None:
    """Return the factor of each product of sizes in a sum of such; None for other trees."""
    if isinstance(tree, int):
        return Counter({(): tree})
    if tree[0] == "size":
        return Counter({(tuple(tree),): 1})
    parts = [_terms(part) for part in tree[1:]] if tree[0] in ("+", "-", "*") else [None]
    total: Counter[Any] = Counter({(): 1 if tree[0] == "*" else 0})
    for place, part in enumerate(parts):
        if part is None:
            return None
        if tree[0] == "*":
            total = _product(total, part)
        else:
            for sizes, factor in part.items():
                total[sizes] += -factor if tree[0] == "-" and place else factor
    return total


def _product(first: Counter[Any], second: Counter[Any]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for (one, a), (two, b) in product(first.items(), second.items()):
        total[tuple(sorted((*one, *two)))] += a * b
    return total


def check(tree: Any, ranks: Sequence[int], depth: int = 0) -> None:
    """Raise `ArtifactError` unless `tree` is a tree over inputs of these ranks."""
    if type(tree) is int:
        return
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str) or depth > 64:
        good = False
    elif tree[0] == "size":
        good = [type(part) for part in tree] == [str, int, int]
        good = good and 0 <= tree[1] < len(ranks) and 0 <= tree[2] < ranks[tree[1]]
    else:
        good = tree[0] in _EVALUATE and (len(tree) == 3 or (len(tree) > 1 and tree[0] in _ANY_NUMBER))
        for part in tree[1:] if good else ():
            check(part, ranks, depth + 1)
    if not good:
        raise ArtifactError(f"{reprlib.repr(tree)} is no condition on the sizes of {len(ranks)} inputs")


def evaluate(tree: Tree, shapes: Shapes) -> int:
    """Return the value of `tree` for these shapes of the inputs; a condition is true where it is not 0.

    A division by zero makes any condition false.
    """
    if isinstance(tree, int):
        return tree
    if tree[0] == "size":
        return shapes[tree[1]][tree[2]]
    return int(_EVALUATE[tree[0]]([evaluate(part, shapes) for part in tree[1:]]))


def compiled(tree: Tree) -> Callable[[Shapes], int]:
    """Return a function that evaluates `tree`, several times as fast as walking it at each call."""
    if isinstance(tree, int):
        return lambda shapes: tree
    if tree[0] == "size":
        leaf, dimension = tree[1:]
        return lambda shapes: shapes[leaf][dimension]
    parts = [compiled(part) for part in tree[1:]]
    if tree[0] in _OF_TWO and len(parts) == 2:
        compute, (first, second) = _OF_TWO[tree[0]], parts
        return lambda shapes: compute(first(shapes), second(shapes))
    combine = _EVALUATE[tree[0]]
    return lambda shapes: combine([part(shapes) for part in parts])


def holds(tree: Tree, shapes: Shapes) -> bool:
    """Say whether the condition is true for these shapes; one that divides by zero is not."""
    try:
        return bool(evaluate(tree, shapes))
    except ZeroDivisionError:
        return False


def text(tree: Tree, names: Sequence[str]) -> str:
    """Return the condition as people write it, e.g. `(x.shape[1] % 2) == 0`."""
    if isinstance(tree, int):
        return str(tree)
    if tree[0] == "size":
        return f"{names[tree[1]]}.shape[{tree[2]}]"
    parts = [text(part, names) for part in tree[1:]]
    if tree[0] in _CALLS:
        return f"{tree[0]}({', '.join(parts)})"
    whole = (isinstance(part, int) or part[0] in ("size", *_CALLS) for part in tree[1:])
    return f" {tree[0]} ".join(part if is_whole else f"({part})" for part, is_whole in zip(parts, whole, strict=True))
