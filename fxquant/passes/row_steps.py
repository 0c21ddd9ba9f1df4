"""Which ops are steps of a row-local region (`fxquant::row_program`), and the lines that they are in it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit

aten, ops = torch.ops.aten, torch.ops.fxquant
BYTES = (torch.int8, torch.uint8)
INDICES = (torch.int64, torch.int32)
# Bytes between two steps are kept in whole groups of four, as a dot product reads them.
GROUP = 4
# Steps whose operands are values: a constant among them is one row for all.
_ROW_BY_ROW = ("add", "multiply")

Word = fx.Node | str


@dataclass(frozen=True)
class Step:
    """A row-local op: its kind and the words after it; a node is a value, or a constant where it reads a tensor."""

    kind: str
    words: tuple[Word, ...]

    @property
    def values(self) -> tuple[fx.Node, ...]:
        """Return the operands that have a row for each row of the result."""
        return tuple(word for word in self.words if isinstance(word, fx.Node) and not edit.is_constant(word))


def read_step(node: fx.Node) -> Step | None:
    """Return the step that a node is, whatever its operands' shapes; None for an op that is not row-local."""
    reader = READERS.get(node.target) if node.op == "call_function" else None
    words = reader(node) if reader else None
    known = edit.info(node)
    if words is None or known is None or known.dtype not in (torch.float32, *BYTES):
        return None
    step = Step(words[0], tuple(_word(word) for word in words[1:]))
    typed = all(_typed(value, step.kind) for value in step.values)
    whole = known.dtype is torch.float32 or step.kind == "quantize" or known.shape[-1] % GROUP == 0
    return step if typed and whole and step.values else None


def _word(value: Any) -> Word:
    if isinstance(value, fx.Node | str):
        return value
    if value is None:
        return "-"
    return str(value).removeprefix("torch.")


def _typed(value: fx.Node, kind: str) -> bool:
    known = edit.info(value)
    wanted = {"embedding": INDICES, "linear_bytes": (*BYTES, torch.float32)}.get(kind, (torch.float32,))
    return known is not None and known.dtype in wanted


def leading(node: fx.Node) -> tuple[int, ...] | None:
    """Return the axes that a value's rows lie along, as in the example: all but the last, or all those of indices."""
    known = edit.info(node)
    if known is None:
        return None
    return known.shape if known.dtype in INDICES else known.shape[:-1]


def serves(few: tuple[int, ...] | None, rows: tuple[int, ...] | None) -> bool:
    """Say whether rows along `few` axes broadcast to `rows` by repeating as a whole: (1, S) to (B, S)."""
    if few is None or rows is None or len(few) > len(rows):
        return False
    own = tuple(few[next((i for i, size in enumerate(few) if size != 1), len(few)) :])
    return own == rows[len(rows) - len(own) :]


def write_program(nodes: list[fx.Node], results: Iterable[fx.Node]) -> tuple[list[Any], list[Any], str]:
    """Return inputs, constants and text of the program of some steps in order (`fxquant.kernels.cpu.row_program`)."""
    names: dict[tuple[fx.Node, bool], str] = {}
    inputs: list[fx.Node] = []
    constants: list[fx.Node] = []

    def name(kind: str, word: Word) -> str:
        if isinstance(word, str):
            return word
        constant = edit.is_constant(word) and kind not in _ROW_BY_ROW  # of these, one is an input of a single row
        if (word, constant) not in names:
            place, letter = (constants, "c") if constant else (inputs, "x")
            names[word, constant] = f"{letter}{len(place)}"
            place.append(word)
        return names[word, constant]

    lines = []
    for index, node in enumerate(nodes):
        step = read_step(node)
        assert step is not None, "a region is made of steps"
        words = (name(step.kind, word) for word in step.words)
        lines.append(f"v{index} = {' '.join((step.kind, *words))}")
        names[node, False] = f"v{index}"
    return inputs, constants, "\n".join([*lines, f"return {' '.join(names[node, False] for node in results)}"])


# ── how each op reads ─────────────────────────────────────────────────────────────────────────────────────────────

Words = tuple[Any, ...]


def _linear(node: fx.Node) -> Words | None:
    *operands, symmetric, value_range = node.args
    if edit.is_constant(operands[5]):  # a residual has a row for each row of the result
        return None
    return "linear", *operands, "symmetric" if symmetric else "affine", value_range


def _linear_bytes(node: fx.Node) -> Words | None:
    constant = all(word is None or edit.is_constant(word) for word in (*node.args[1:3], *node.args[9:11]))
    return ("linear_bytes", *node.args) if constant and not edit.is_constant(node.args[7]) else None


def _weight_only(node: fx.Node) -> Words | None:
    x, packed, *_ = node.args
    known, weight, group = edit.info(x), edit.info(packed), node.args[8]  # type: ignore[arg-type]
    if known is None or weight is None or edit.is_constant(node.args[5]) or not isinstance(group, int):
        return None
    # Others are filled up by a copy of the activations, which a step has no place for.
    step = 8 if weight.dtype is torch.uint8 else 4
    whole = known.shape[-1] % step == 0 and (group % step == 0 or group >= known.shape[-1])
    return ("weight_only", *node.args) if whole else None


def _columns(node: fx.Node) -> Words | None:
    x, axis, start, _, step = node.args
    known, whole = edit.info(node), edit.info(x)  # type: ignore[arg-type]
    if known is None or whole is None or axis not in (-1, len(known.shape) - 1) or step != 1 or known.dynamic[-1]:
        return None
    first = start or 0
    return ("columns", x, first, first + known.shape[-1]) if isinstance(first, int) and first >= 0 else None


def _quantize(node: fx.Node) -> Words | None:
    return ("quantize", *node.args) if all(map(edit.is_constant, node.args[1:3])) else None


def _layer_norm(node: fx.Node) -> Words | None:
    x, shape, weight, bias, eps = node.args[:5]
    return ("norm", x, weight, bias, "layer", eps) if _is_norm(shape, weight, bias) else None


def _rms_norm(node: fx.Node) -> Words | None:
    x, shape, weight, eps = node.args
    least = torch.finfo(torch.float32).eps
    return ("norm", x, weight, None, "rms", least if eps is None else eps) if _is_norm(shape, weight) else None


def _is_norm(shape: Any, *weights: Any) -> bool:
    given = [edit.info(weight) for weight in weights if edit.is_constant(weight)]
    known = all(weight is None or edit.is_constant(weight) for weight in weights)
    return known and len(shape) == 1 and all(each is not None and each.dtype is torch.float32 for each in given)


def _elementwise(kind: str) -> Callable[[fx.Node], Words | None]:
    def read(node: fx.Node) -> Words | None:
        first, second = node.args[:2]
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or node.kwargs.get("alpha", 1) != 1:
            return None
        if edit.is_constant(first) or (edit.is_constant(second) and not _is_row(second)):
            return None
        sizes = [(edit.info(value) or edit.TensorInfo(torch.float32, (0,), ())).shape for value in (first, second)]
        if not all(sizes) or sizes[0][-1] != sizes[1][-1]:
            return None
        if edit.is_constant(second):
            return kind, first, second
        # The second operand may have fewer rows.
        few, many = sorted((first, second), key=lambda value: len(_own_axes(value)))
        return (kind, first, second) if few is second or not _repeats(first, second) else (kind, many, few)

    return read


def _is_row(constant: fx.Node) -> bool:
    known = edit.info(constant)
    return known is not None and known.dtype is torch.float32 and len(known.shape) == 1


def _own_axes(value: fx.Node) -> tuple[int, ...]:
    return tuple(size for size in leading(value) or () if size != 1)


def _repeats(first: fx.Node, second: fx.Node) -> bool:
    return leading(first) != leading(second)


def _activation(kind: str) -> Callable[[fx.Node], Words | None]:
    """Return the reader of an activation of what a linear gave, or of some columns of that.

    Others stay calls: behind convolutions the last axis is a place, and no row.
    """

    def read(node: fx.Node) -> Words | None:
        x: Any = node.args[0]
        approximate = node.kwargs.get("approximate", "none")
        name = kind if approximate == "none" else f"{kind}_{approximate}"
        return ("activate", x, name) if _is_linear(x) or (_is_columns(x) and _is_linear(x.args[0])) else None

    return read


def _is_linear(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in LINEARS


def _is_columns(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.slice.Tensor


def _embedding(node: fx.Node) -> Words:
    table, scale, ids = node.args
    return "embedding", ids, table, scale


LINEARS = (
    ops.packed_linear_dynamic_int8.default,
    ops.packed_linear_int8.default,
    ops.packed_linear_weight_only.default,
)
READERS: dict[Any, Callable[[fx.Node], Words | None]] = {
    ops.packed_linear_dynamic_int8.default: _linear,
    ops.packed_linear_int8.default: _linear_bytes,
    ops.packed_linear_weight_only.default: _weight_only,
    ops.quantize_static.default: _quantize,
    ops.rows_embedding_int8.default: _embedding,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.slice.Tensor: _columns,
    aten.relu.default: _activation("relu"),
    aten.gelu.default: _activation("gelu"),
    aten.silu.default: _activation("silu"),
    aten.add.Tensor: _elementwise("add"),
    aten.mul.Tensor: _elementwise("multiply"),
}
