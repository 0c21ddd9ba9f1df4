"""`fxquant::row_program`: a row-local region of the graph as one op, run on blocks of rows that stay in the cache.

An op is row-local where a row of its result needs the same row of its operands alone: linears, look-ups, norms, sums.
What such a region computes on the way never reaches memory. The region is a program, one step a line:

    v0 = embedding x0 c0 c1                                    look up rows of table c0, int8, with scales c1
    v1 = add v0 x1                                             or multiply
    v2 = norm v1 c2 c3 layer 1e-12                             weight, bias; or rms
    v3 = linear v2 c4 c5 c6 c7 v2 gelu uint8 affine full       packed weight, its scale and sums, bias, residual,
                                                               activation; how each row of v2 is quantized
    v4 = quantize v3 c8 c9 0 255 uint8                         scale, zero point, least, greatest
    v5 = weight_only v2 c4 c5 c6 c7 v2 silu 640 32 320         packed weight of 8 or 4 bits, its scale, zero point and
                                                               bias, residual, activation, columns, group size, how
                                                               many columns have the activation (`-`: all)
    v6 = activate v5 silu                                      or relu, gelu, gelu_tanh
    v7 = columns v6 0 320                                      the first, and the one behind the last
    v8 = linear_bytes v4 c8 c9 c10 c11 c12 c13 - none - - 0 0 float32
                                                               the scale and zero point of v4, a linear, and how its
                                                               result is quantized, or not
    return v2 v8                                               or v8:bfloat16, of a linear of bytes that no step reads

x0, x1, … are the inputs: float32 (…, K), or indices (…); c0, c1, … the constants; `-` stands for none. An input whose
leading axes are (1, …, S) serves all rows (B, …, S), as in broadcasting. v0, v1, … are the steps' results in order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cpu import packed, weight_only
from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish_exactly

Values = dict[str, Tensor]


def steps(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every line: ("v0", ["add", "x0", "x1"]); at last ("return", names)."""
    for line in program.strip().splitlines():
        name, _, rest = line.strip().partition(" ")
        yield name, rest.removeprefix("= ").split()


def row_program(inputs: Sequence[Tensor], constants: Sequence[Tensor], program: str) -> list[Tensor]:
    """Return the results of `program`, each (…, N) float32 or bfloat16; … are the leading axes of the inputs."""
    values = {f"x{index}": value for index, value in enumerate(inputs)}
    values |= {f"c{index}": value for index, value in enumerate(constants)}
    lead = leading_shape(inputs)
    for name, words in steps(program):
        if name == "return":
            return [_result(values, lead, *split_result(word)) for word in words]
        values[name] = _compute(values, words)
    return []


def split_result(word: str) -> tuple[str, torch.dtype]:
    """Return name and dtype of a result: "v5" or "v5:bfloat16"."""
    name, _, dtype = word.partition(":")
    return name, getattr(torch, dtype or "float32")


def _result(values: Values, lead: torch.Size, name: str, dtype: torch.dtype) -> Tensor:
    return values[name].expand(*lead, values[name].shape[-1]).to(dtype, copy=True)


def leading_shape(inputs: Sequence[Tensor]) -> torch.Size:
    """Return the leading axes that all inputs broadcast to."""
    shapes = (value.shape[:-1] if value.is_floating_point() else value.shape for value in inputs)
    lead: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return lead


def _compute(values: Values, words: list[str]) -> Tensor:
    kind, *names = words
    return STEPS[kind]([values.get(name) for name in names], names)


def _embedding(given: list[Any], names: list[str]) -> Tensor:
    ids, table, scale = given
    return packed.embedding_int8(table, scale, ids)


def _norm(given: list[Any], names: list[str]) -> Tensor:
    x, weight, bias = given[:3]
    kind, eps = names[3], float(names[4])
    if kind == "rms":
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _quantize(given: list[Any], names: list[str]) -> Tensor:
    x, scale, zero_point = given[:3]
    return packed.quantize(x, scale, zero_point, int(names[3]), int(names[4]), getattr(torch, names[5]))


def _linear(given: list[Any], names: list[str]) -> Tensor:
    x, weight, scale, sums, bias, residual = given[:6]
    activation, dtype, symmetric, value_range = names[6:]
    scheme = (dtype, symmetric == "symmetric", value_range)
    return packed.linear_dynamic_int8(x, weight, scale, sums, bias, residual, activation, *scheme)


def _linear_bytes(given: list[Any], names: list[str]) -> Tensor:
    x, x_scale, x_zero_point, weight, scale, sums, bias, residual = given[:8]
    output = (given[9], given[10], int(names[11]), int(names[12]), getattr(torch, names[13]))
    return packed.linear_int8(x, x_scale, x_zero_point, weight, scale, sums, bias, residual, names[8], *output)


def _weight_only(given: list[Any], names: list[str]) -> Tensor:
    columns, group_size = int(names[7]), int(names[8])
    activated = None if names[9] == "-" else int(names[9])
    x, weight, scale, zero_point, bias, residual = given[:6]
    operands = (x, weight, scale, zero_point, bias, residual)
    return weight_only.packed_linear_weight_only(*operands, names[6], columns, group_size, activated)


STEPS: dict[str, Callable[[list[Any], list[str]], Tensor]] = {
    "embedding": _embedding,
    "add": lambda given, _: given[0] + given[1],
    "multiply": lambda given, _: given[0] * given[1],
    "activate": lambda given, names: finish_exactly(given[0], names[1], None),
    "columns": lambda given, names: given[0][..., int(names[1]) : int(names[2])],
    "norm": _norm,
    "quantize": _quantize,
    "linear": _linear,
    "linear_bytes": _linear_bytes,
    "weight_only": _weight_only,
}


def fake_row_program(inputs: Sequence[Tensor], constants: Sequence[Tensor], program: str) -> list[Tensor]:
    """Return empty tensors of the shapes of `row_program`."""
    widths = {f"x{index}": value.shape[-1] for index, value in enumerate(inputs) if value.is_floating_point()}
    lead = leading_shape(inputs)
    for name, words in steps(program):
        if name == "return":
            results = map(split_result, words)
            return [inputs[0].new_empty((*lead, widths[result]), dtype=dtype) for result, dtype in results]
        widths[name] = _width(words, widths, constants)
    return []


def _width(words: list[str], widths: dict[str, int], constants: Sequence[Tensor]) -> int:
    """Return the columns of a step's result."""
    if words[0] == "weight_only":
        return int(words[8])
    if words[0] == "columns":
        return int(words[3]) - int(words[2])
    place = {"embedding": 2, "linear": 4, "linear_bytes": 6}.get(words[0])
    return widths[words[1]] if place is None else int(constants[int(words[place].removeprefix("c"))].shape[-1])


define("row_program(Tensor[] inputs, Tensor[] constants, str program) -> Tensor[]", row_program, fake_row_program)
