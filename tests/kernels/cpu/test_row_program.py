"""Row programs: each step equals the op that it stands for, whole programs the Python ones; whatever the rows."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import fxquant.kernels
from fxquant.kernels.cpu import packed, row_program, weight_only
from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
op = ops.row_program
SCHEMES = [("uint8", False, "restricted"), ("uint8", True, "restricted"), ("int8", False, "restricted")]
SCHEMES += [("int8", True, "restricted"), ("int8", True, "full")]
ACTIVATIONS = ["none", "relu", "gelu"]  # equal to the bit to the Python ones
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
leads = st.sampled_from([(), (0,), (1,), (2, 0), (5,), (3, 7), (2, 1, 9), (23,), (97,), (200,)])
widths = st.sampled_from([1, 3, 4, 5, 31, 32, 64, 65, 100])


pytestmark = pytest.mark.usefixtures("native_isa")


@pytest.fixture(autouse=True)
def same_threads():
    """Leave the number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Writer:
    """Writes a program step by step, with constants of its own."""

    def __init__(self, inputs, seed=0):
        self.inputs, self.constants, self.lines = list(inputs), [], []
        self.width = {f"x{i}": x.shape[-1] for i, x in enumerate(inputs) if x.is_floating_point()}
        self.generator = torch.Generator().manual_seed(seed)

    def constant(self, tensor):
        self.constants.append(tensor)
        return f"c{len(self.constants) - 1}"

    def step(self, width, *words):
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {' '.join(map(str, words))}")
        self.width[name] = width
        return name

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def weight(self, n, k, per_channel=True, bias=True):
        """Return the names of a random packed weight, its scale and sums, and the bias."""
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=self.generator)
        scale = torch.rand(n if per_channel else (), generator=self.generator) / 100 + 1e-4
        tensors = (packed.pack(weight), scale, packed.column_sums(weight))
        return [*map(self.constant, tensors), self.constant(self.random(n)) if bias else "-"]

    def embedding(self, ids, width, rows=11, per_row=True):
        table = torch.randint(-127, 128, (rows, width), dtype=torch.int8, generator=self.generator)
        scale = torch.rand(rows if per_row else (), generator=self.generator) / 50
        return self.step(width, "embedding", ids, self.constant(table), self.constant(scale))

    def linear(self, x, n, residual="-", activation="none", scheme=SCHEMES[0], **weight):
        how = (activation, scheme[0], "symmetric" if scheme[1] else "affine", scheme[2])
        return self.step(n, "linear", x, *self.weight(n, self.width[x], **weight), residual, *how)

    def weight_only(self, x, n, spec, residual="-", activation="none", bias=True, activated="-"):
        """Return a linear of floats with a random weight of `spec`."""
        k = self.width[x]
        weight = self.random(n, k)
        qparams = choose_qparams(weight, spec)
        parts = [weight_only.pack(quantize(weight, qparams, spec), spec)]
        parts.append(weight_only.pack_parameter(qparams.scale, (n, k), spec))
        if not spec.symmetric:
            parts.append(weight_only.pack_parameter(qparams.zero_point, (n, k), spec))
        names = [*map(self.constant, parts), *(["-"] if spec.symmetric else [])]
        names.append(self.constant(self.random(n)) if bias else "-")
        size = weight_only.group_size(spec, k)
        return self.step(n, "weight_only", x, *names, residual, activation, n, size, activated)

    def columns(self, x, first, end):
        return self.step(end - first, "columns", x, first, end)

    def norm(self, x, kind="layer", weight=True, bias=True, eps=1e-12):
        width = self.width[x]
        constants = [self.constant(self.random(width)) if given else "-" for given in (weight, bias)]
        return self.step(width, "norm", x, *constants, kind, eps)

    def both(self, kind, a, b):
        return self.step(self.width[a], kind, a, b)

    def qparams(self, dtype, scale=0.05):
        zero_point = 117 if dtype == "uint8" else -9
        return (
            [self.constant(torch.tensor(scale)), self.constant(torch.tensor(zero_point, dtype=torch.int32))],
            [*((0, 255) if dtype == "uint8" else (-128, 127)), dtype],
        )

    def quantize(self, x, dtype):
        """Return the name of the bytes, and those of their scale and zero point."""
        qparams, rest = self.qparams(dtype)
        return self.step(self.width[x], "quantize", x, *qparams, *rest), qparams

    def linear_bytes(self, x, qparams, n, residual="-", activation="none", out=None, **weight):
        weights = self.weight(n, self.width[x], **weight)
        asked, rest = self.qparams(out) if out else (["-", "-"], [0, 0, "float32"])
        return self.step(n, "linear_bytes", x, *qparams, *weights, residual, activation, *asked, *rest), asked

    def program(self, *results):
        return self.inputs, self.constants, "\n".join([*self.lines, f"return {' '.join(results)}"])


def compiled(program):
    return op(*program)


def in_python(program):
    return row_program.row_program(*program)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for y, wanted in zip(found, expected, strict=True):
        assert y.shape == wanted.shape
        assert y.dtype is wanted.dtype
        assert torch.equal(y, wanted)


def assert_close(found, expected):
    for y, wanted in zip(found, expected, strict=True):
        assert y.shape == wanted.shape
        torch.testing.assert_close(y, wanted, rtol=2e-5, atol=2e-5, equal_nan=True)


# ── each step against the op that it stands for ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(map(str, scheme)))
@examples
@given(leads, widths, widths, st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 99))
def test_linear(scheme, lead, k, n, activation, full, seed):
    x, residual = draw(*lead, k, seed=seed) * 3 + 1, draw(*lead, n, seed=seed)
    w = Writer([x, residual], seed)
    y = w.linear("x0", n, "x1" if full else "-", activation, scheme, per_channel=full, bias=full)
    program = w.program(y)
    weight = [*w.constants, *([] if full else [None])]
    alone = ops.packed_linear_dynamic_int8(x, *weight, residual if full else None, activation, *scheme)
    assert_equal(compiled(program), [alone])
    assert_equal(compiled(program), in_python(program))


FLOAT_ROWS = [
    QuantSpec(granularity="per-channel", symmetric=True),
    QuantSpec(dtype="int4", granularity="per-group", group_size=32),
    QuantSpec(dtype="int4", granularity="per-group", group_size=16, symmetric=True),
    QuantSpec(dtype="int8", granularity="per-channel", symmetric=False),
]


@pytest.mark.parametrize("spec", FLOAT_ROWS, ids=["int8", "int4-g32", "int4-g16", "int8-affine"])
@examples
@given(
    leads, st.sampled_from([32, 64, 96, 160]), widths, st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 9)
)
def test_weight_only(spec, lead, k, n, activation, full, seed):
    x, residual = draw(*lead, k, seed=seed).bfloat16().float(), draw(*lead, n, seed=seed)
    w = Writer([x, residual], seed)
    program = w.program(w.weight_only("x0", n, spec, "x1" if full else "-", activation, bias=full))
    packed_weight, scale, *rest = w.constants
    zero_point = None if spec.symmetric else rest.pop(0)
    operands = (packed_weight, scale, zero_point, rest[0] if full else None, residual if full else None)
    size = weight_only.group_size(spec, k)
    alone = ops.packed_linear_weight_only(x, *operands, activation, n, size)
    assert_equal(compiled(program), [alone])
    assert_close(compiled(program), in_python(program))


@pytest.mark.parametrize("rows", [1, 2, 5, 30, 120])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gate_and_its_up_of_one_product(native_isa, rows, threads):
    torch.set_num_threads(threads)
    w = Writer([draw(rows, 64)])
    normed = w.norm("x0", "rms", bias=False, eps=1e-6)
    both = w.weight_only(normed, 384, FLOAT_ROWS[1], activation="relu", bias=False, activated=192)
    gated = w.both("multiply", w.columns(both, 0, 160), w.columns(both, 192, 352))
    program = w.program(w.weight_only(gated, 64, FLOAT_ROWS[0], "x0"))
    found = compiled(program)
    # Of numbers up to 5000; avx512_bf16 rounds factors to 2⁻⁹ of them.
    torch.testing.assert_close(found, in_python(program), rtol=1e-4, atol=40 if native_isa == "avx512_bf16" else 1e-2)
    alone = [compiled(([row[None]], *program[1:]))[0] for row in program[0][0]]
    assert_equal(found, [torch.cat(alone)])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@examples
@given(leads, widths, widths, st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 99))
def test_quantize_and_linear_of_bytes(dtype, lead, k, n, activation, full, seed):
    x, residual = draw(*lead, k, seed=seed) * 4, draw(*lead, n, seed=seed)
    w = Writer([x, residual], seed)
    q, qparams = w.quantize("x0", dtype)
    y, _ = w.linear_bytes(q, qparams, n, "x1" if full else "-", activation, per_channel=full, bias=full)
    program = w.program(y)
    scale, zero_point, *weight = w.constants
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    integers = ops.quantize_static(x, scale, zero_point, low, high, getattr(torch, dtype))
    tail = (*weight, *([] if full else [None]), residual if full else None, activation, None, None, 0, 0, torch.float32)
    alone = ops.packed_linear_int8(integers, scale, zero_point, *tail)
    assert_equal(compiled(program), [alone])
    assert_equal(compiled(program), in_python(program))


@examples
@given(
    leads,
    st.lists(st.sampled_from([4, 8, 60, 64, 68]), min_size=1, max_size=4),
    st.sampled_from(["uint8", "int8"]),
    st.sampled_from(["uint8", "int8"]),
    st.sampled_from(ACTIVATIONS),
    st.integers(0, 99),
)
def test_chains_of_bytes(lead, sizes, first, then, activation, seed):
    """Bytes of one linear are the operand of the next, of either sign."""
    x = draw(*lead, 9, seed=seed) * 4
    w = Writer([x], seed)
    value, qparams = w.quantize("x0", first)
    for width in sizes:
        value, qparams = w.linear_bytes(value, qparams, width, activation=activation, out=then)
    y, _ = w.linear_bytes(value, qparams, 7)
    program = w.program(y)
    assert_equal(compiled(program), in_python(program))


@examples
@given(leads, widths, st.booleans(), st.integers(0, 99), st.sampled_from([torch.int64, torch.int32]))
def test_embedding(lead, width, per_row, seed, dtype):
    ids = torch.randint(0, 11, lead, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    w = Writer([ids], seed)
    program = w.program(w.embedding("x0", width, per_row=per_row))
    assert_equal(compiled(program), [ops.rows_embedding_int8(*w.constants, ids)])
    assert_equal(compiled(program), in_python(program))


@examples
@given(leads, widths, st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"]), st.integers(0, 99))
def test_activations_of_columns(lead, width, activation, seed):
    x = draw(*lead, width + 5, seed=seed) * 4
    w = Writer([x])
    program = w.program(w.step(width, "activate", w.columns("x0", 3, width + 3), activation))
    assert_close(compiled(program), in_python(program))
    exact = {"relu": torch.relu, "silu": functional.silu, "gelu": functional.gelu}
    function = exact.get(activation, lambda y: functional.gelu(y, approximate="tanh"))
    assert_close(compiled(program), [function(x[..., 3 : width + 3])])


@examples
@given(leads, widths, st.sampled_from(["add", "multiply"]), st.integers(0, 99))
def test_sums_and_products(lead, width, kind, seed):
    a, b = draw(*lead, width, seed=seed), draw(*lead, width, seed=seed + 1)
    w = Writer([a, b])
    program = w.program(w.both(kind, "x0", "x1"))
    assert_equal(compiled(program), [a + b if kind == "add" else a * b])


@examples
@given(
    leads,
    widths,
    st.sampled_from(["layer", "rms"]),
    st.booleans(),
    st.sampled_from([1e-12, 1e-5, 1.1920928955078125e-07]),
    st.sampled_from([(0.0, 1.0), (300.0, 1.0), (0.0, 1e-3), (-2.0, 1e4)]),
    st.integers(0, 99),
)
def test_norms(lead, width, kind, full, eps, moments, seed):
    x = draw(*lead, width, seed=seed) * moments[1] + moments[0]
    w = Writer([x], seed)
    program = w.program(w.norm("x0", kind, weight=full, bias=full and kind == "layer", eps=eps))
    weight, bias = [*w.constants, None, None][:2]
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    expected = expected * (1 if weight is None else weight.double()) + (0 if bias is None else bias.double())
    (y,) = compiled(program)
    assert y.shape == x.shape
    # The mean of x is rounded to float32, and so is what is left of x beside it.
    noise = 1e-6 * (1 + abs(moments[0]) / moments[1]) * 10
    if kind == "rms" or width > 3:  # in rows of few values the variance itself may be no more than that rounding
        torch.testing.assert_close(y.double(), expected, rtol=noise, atol=noise)


def test_a_tiny_eps_is_no_error():
    w = Writer([draw(3, 8)])
    program = w.program(w.norm("x0", eps=1e-60))
    torch.testing.assert_close(compiled(program)[0], functional.layer_norm(draw(3, 8), (8,), *w.constants, 0.0))


# ── programs ──────────────────────────────────────────────────────────────────────────────────────────────────────


def random_program(data, lead):
    """Draw a program of up to ten steps of every kind, without norms, each on values before it; return it."""
    seed = data.draw(st.integers(0, 99))
    inputs = [draw(*lead, data.draw(widths), seed=seed), draw(*lead, 32, seed=seed + 1)]
    inputs.append(torch.randint(0, 11, lead, generator=torch.Generator().manual_seed(seed)))
    w, floats, bytes_of = Writer(inputs, seed), ["x0", "x1"], {}
    kinds = st.sampled_from(["linear", "quantize", "linear_bytes", "bytes", "add", "multiply", "embedding"])
    for kind in data.draw(st.lists(kinds, min_size=1, max_size=10)):
        x, n = data.draw(st.sampled_from(floats)), data.draw(widths)
        fitting = [each for each in floats if w.width[each] == n]
        residual = data.draw(st.sampled_from(["-", *fitting]))
        activation, sign = data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.sampled_from(["uint8", "int8"]))
        if kind == "quantize" or (kind in ("linear_bytes", "bytes") and not bytes_of):
            name, qparams = w.quantize(x, sign)
            bytes_of[name] = qparams
            continue
        if kind == "bytes":
            source = data.draw(st.sampled_from(sorted(bytes_of)))
            name, qparams = w.linear_bytes(source, bytes_of[source], n + -n % 4, activation=activation, out=sign)
            bytes_of[name] = qparams
            continue
        if kind == "linear_bytes":
            source = data.draw(st.sampled_from(sorted(bytes_of)))
            name, _ = w.linear_bytes(source, bytes_of[source], n, residual, activation)
        elif kind == "linear":
            name = w.linear(x, n, residual, activation, data.draw(st.sampled_from(SCHEMES)))
        elif kind == "embedding":
            name = w.embedding("x2", n)
        else:
            name = w.both(kind, x, data.draw(st.sampled_from([each for each in floats if w.width[each] == w.width[x]])))
        floats.append(name)
    steps = [each for each in floats if each.startswith("v")]
    if not steps:
        steps = [w.both("add", "x0", "x0")]
    last = steps[-1:]  # and some of the values on the way
    return w.program(*data.draw(st.lists(st.sampled_from(steps), unique=True, max_size=3).map(lambda s: s or last)))


@settings(examples, max_examples=60)
@given(leads, st.data())
def test_random_programs_equal_those_in_python(lead, data):
    program = random_program(data, lead)
    assert_equal(compiled(program), in_python(program))


def encoder(rows, hidden=96, seed=0):
    """The part of an encoder layer between two attentions, static in the middle."""
    w = Writer([draw(*rows, hidden, seed=seed), draw(*rows, hidden, seed=seed + 1)], seed)
    h = w.norm(w.linear("x0", hidden, "x1"))
    up = w.linear(h, 4 * hidden, activation="gelu")
    down = w.norm(w.linear(up, hidden, h))
    q, qparams = w.quantize(down, "int8")
    inner, qparams = w.linear_bytes(q, qparams, 128, activation="relu", out="uint8")
    y, _ = w.linear_bytes(inner, qparams, 3 * hidden)
    return w.program(down, y)


def test_an_encoder_layer_is_near_that_in_python():
    """Norms differ in the last bits, which now and then turns an integer by one step."""
    for y, expected in zip(compiled(encoder((5, 9))), in_python(encoder((5, 9))), strict=True):
        assert functional.cosine_similarity(y.flatten(), expected.flatten(), dim=0) > 0.9999


@pytest.mark.parametrize("rows", [1, 2, 5, 23, 24, 47, 48, 49, 96, 97, 130, 200])
def test_threads_change_no_bit(rows):
    torch.set_num_threads(2)
    two = compiled(encoder((rows,)))
    torch.set_num_threads(1)
    assert_equal(two, compiled(encoder((rows,))))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_alone_equals_the_row_in_a_batch(threads):
    torch.set_num_threads(threads)
    inputs, constants, program = encoder((131,))
    together = op(inputs, constants, program)
    for part in (slice(0, 1), slice(17, 18), slice(95, 131), slice(96, 97), slice(130, 131)):
        assert_equal(op([x[part] for x in inputs], constants, program), [y[part] for y in together])


def test_leading_axes_only_name_the_rows():
    inputs, constants, program = encoder((60,))
    flat = op(inputs, constants, program)
    shaped = op([x.view(3, 1, 20, -1) for x in inputs], constants, program)
    assert_equal([y.flatten(0, 2) for y in shaped], flat)
    (x, residual), vector = inputs, op([x[7] for x in inputs], constants, program)
    assert x.ndim == residual.ndim == 2
    assert_equal(vector, [y[7] for y in flat])


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_inputs_that_serve_every_batch_row(batch):
    """Positions (1, S) beside words (B, S): as ids, as second operands, as a residual, as the input of a norm."""
    length, width = 13, 20
    ids = torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))
    positions, shared = torch.arange(length)[None] % 11, draw(1, length, width)
    w = Writer([ids, positions, shared, draw(length, width, seed=3)])
    value = w.both("add", w.embedding("x0", width), w.embedding("x1", width))
    value = w.both("multiply", value, "x2")
    value = w.both("add", value, "x3")
    value = w.linear(value, width, "x2")
    kept = w.both("add", value, "x2")
    program = w.program(value, kept)
    assert_equal(compiled(program), in_python(program))
    w.norm("x3")
    program = w.program(kept, f"v{len(w.lines) - 1}")
    assert_close(compiled(program), in_python(program))


BROADCASTS = {
    "one row for all": ((4, 5), (1, 1)),
    "a vector": ((4, 5), ()),
    "once a batch row": ((4, 5), (4, 1)),
    "both ways": ((4, 1), (1, 5)),
    "as many rows, another way": ((2, 1), (1, 2)),
    "inside": ((3, 4, 5), (3, 1, 5)),
    "the first is smaller": ((1, 5), (4, 5)),
}


@pytest.mark.parametrize("case", BROADCASTS)
def test_inputs_broadcast_as_in_torch(case):
    first, second = BROADCASTS[case]
    w = Writer([draw(*first, 9), draw(*second, 9, seed=1)])
    y = w.both("add", w.both("multiply", "x0", "x1"), "x1")
    program = w.program(w.linear(y, 6))
    assert_equal(compiled(program), in_python(program))


def test_indices_broadcast_as_in_torch():
    w = Writer([torch.arange(4)[:, None], torch.arange(5)[None]])
    program = w.program(w.both("add", w.embedding("x0", 7), w.embedding("x1", 7)))
    assert_equal(compiled(program), in_python(program))


def test_strided_inputs():
    inputs, constants, program = encoder((6, 7))
    apart = [
        inputs[0].transpose(0, 1).contiguous().transpose(0, 1),
        inputs[1].repeat_interleave(2, -1)[..., ::2],
    ]
    assert not any(x.is_contiguous() for x in apart)
    assert_equal(op(apart, constants, program), op(inputs, constants, program))
    expanded = inputs[1][:1].expand(6, 7, -1)
    assert_equal(op([inputs[0], expanded], constants, program), op([inputs[0], expanded.clone()], constants, program))


def test_inputs_are_left_as_they_are():
    inputs, constants, program = encoder((6, 7))
    before = [x.clone() for x in (*inputs, *constants)]
    op(inputs, constants, program)
    assert all(torch.equal(x, old) for x, old in zip((*inputs, *constants), before, strict=True))


def test_half_precision_is_widened():
    inputs, constants, program = encoder((4,))
    halves = [x.bfloat16() for x in inputs]
    assert_equal(op(halves, constants, program), op([x.float() for x in halves], constants, program))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("kind", ["linear", "norm", "add"])
def test_what_is_not_finite_stays_in_its_row(kind, value):
    x = draw(30, 64)
    x[7, 40] = value
    w = Writer([x, draw(30, 64, seed=1)])
    step = {
        "linear": lambda: w.linear("x0", 64),
        "norm": lambda: w.norm("x0"),
        "add": lambda: w.both("add", "x0", "x1"),
    }
    program = w.program(step[kind]())
    (y,) = compiled(program)
    assert_close([y], in_python(program))
    assert not y[7].isfinite().all()
    assert y[:7].isfinite().all()
    assert y[8:].isfinite().all()


@pytest.mark.parametrize("n", [1, 40, 64, 200])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_results_in_bfloat16(rows, n):
    w = Writer([draw(rows, 24), draw(rows, 24)])
    w.inputs[0][0] = torch.nan
    w.inputs[0][-1] *= 1e30
    total = w.both("add", "x0", "x1")
    wide, narrow = w.linear(total, n), w.linear(total, n, activation="relu")
    q, qparams = w.quantize("x1", "uint8")
    last, _ = w.linear_bytes(q, qparams, n)
    program = w.program(wide, f"{narrow}:bfloat16", f"{last}:bfloat16")
    found, expected = compiled(program), in_python(program)
    assert [y.dtype for y in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for y, wanted in zip(found, expected, strict=True):
        assert torch.equal(y.nan_to_num(7.0), wanted.nan_to_num(7.0))
    fakes = row_program.fake_row_program(*program)
    assert [(y.shape, y.dtype) for y in fakes] == [(y.shape, y.dtype) for y in found]


def test_a_wide_value_fits_in_few_rows():
    """The scratch memory of a block grows with the widest value."""
    w = Writer([draw(50, 8)])
    up = w.linear("x0", 9001)
    program = w.program(w.linear(up, 3))
    assert_equal(compiled(program), in_python(program))


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────

KINDS = [torch.ones(2, 8), torch.ones(2, 6), torch.zeros(2, dtype=torch.int64), torch.ones(2, 9)]
WEIGHT = torch.zeros(6, 8, dtype=torch.int8)
CONSTANTS = [packed.pack(WEIGHT), torch.ones(6), packed.column_sums(WEIGHT), torch.ones(8), torch.ones(())]
CONSTANTS += [torch.tensor(0, dtype=torch.int32), torch.zeros(3, 8, dtype=torch.int8), torch.ones(4, 4).t()]
LINEAR = "none uint8 affine full"
REFUSED = {
    "": "the program returns nothing",
    "v0 = add x0 x0": "the program returns nothing",
    "v0 add x0 x0\nreturn v0": "cannot read the line 'v0 add x0 x0'",
    "v0 = add\nreturn v0": "cannot read the line 'v0 = add'",
    "v1 = add x0 x0\nreturn v1": "the line 'v1 = add x0 x0' is step 0, which gives v0",
    "v0 = divide x0 x0\nreturn v0": "there is no step 'divide'",
    "v0 = add x0\nreturn v0": "add takes 2 operands, not 1",
    "v0 = add x0 x0 x0\nreturn v0": "add takes 2 operands, not 3",
    "v0 = norm x0 c3 c3 layer\nreturn v0": "norm takes 5 operands, not 4",
    "v0 = add x0 x9\nreturn v0": "there is no value 'x9'",
    "v0 = add x0 v0\nreturn v0": "there is no value 'v0'",
    "v0 = add x0 c3\nreturn v0": "there is no value 'c3'",
    "v0 = add x0 -\nreturn v0": "there is no value '-'",
    "v0 = add x0 x-1\nreturn v0": "'-1' is not a number",
    "v0 = add x0 xx\nreturn v0": "'x' is not a number",
    "v0 = add x0 x1\nreturn v0": "x1 has 6 columns, not 8",
    "v0 = add x0 x2\nreturn v0": "x2 does not hold floats",
    "v0 = norm x2 c3 c3 layer 1e-5\nreturn v0": "x2 does not hold floats",
    "v0 = norm x1 c3 c3 layer 1e-5\nreturn v0": "constant c3 has 8 values, not 6",
    "v0 = norm x0 c3 c99 layer 1e-5\nreturn v0": "there is no constant 'c99'",
    "v0 = norm x0 c3 x0 layer 1e-5\nreturn v0": "there is no constant 'x0'",
    "v0 = norm x0 c3 c3 layer small\nreturn v0": "'small' is not a number",
    "v0 = norm x0 c6 - layer 1e-5\nreturn v0": "constant c6 has 24 values, not 8",
    "v0 = norm x1 c2 - layer 1e-5\nreturn v0": "expected scalar type Float but found Int",
    "v0 = norm x0 c7 - layer 1e-5\nreturn v0": "constant c7 is not contiguous",
    f"v0 = linear x3 c0 c1 c2 - - {LINEAR}\nreturn v0": "x has 9 features, the weight 8 or up to 3 fewer",
    f"v0 = linear x0 c3 c1 c2 - - {LINEAR}\nreturn v0": "the weight is not packed for 6 columns",
    f"v0 = linear x0 c0 c3 c2 - - {LINEAR}\nreturn v0": "constant c3 has 8 values, not 1 or 6",
    f"v0 = linear x0 c0 c1 c2 c3 - {LINEAR}\nreturn v0": "constant c3 has 8 values, not 6",
    f"v0 = linear x0 c0 c1 c2 - x0 {LINEAR}\nreturn v0": "x0 has 8 columns, not 6",
    "v0 = linear x0 c0 c1 c2 - - tanh uint8 affine full\nreturn v0": "unknown activation 'tanh'",
    "v0 = linear x0 c0 c1 c2 - - none int4 affine full\nreturn v0": "activations are int8 or uint8, not int4",
    "v0 = linear_bytes x0 c4 c5 c0 c1 c2 - - none - - 0 0 float32\nreturn v0": "x0 does not hold bytes",
    "v0 = quantize x0 - c5 0 255 uint8\nreturn v0": "a scale or zero point is missing",
    "v0 = quantize x0 c4 c5 0 255 uint8\nreturn v0": "v0 does not hold floats",
    "v0 = quantize x0 c4 c5 0 255 uint8\nv1 = add v0 v0\nreturn v1": "v0 does not hold floats",
    "v0 = quantize x0 c4 c5 0 255 uint8\nv1 = linear_bytes v0 c4 c5 c0 c1 c2 - - none c4 c5 0 255 uint8\nreturn v1": (
        "bytes of 6 columns are not a multiple of 4"
    ),
    "v0 = embedding x0 c6 c4\nreturn v0": "x0 does not hold indices",
    "v0 = embedding x2 c6 c1\nreturn v0": "constant c1 has 6 values, not 1 or 3",
    "v0 = add x0 x0\nreturn x0": "x0 is not the result of a step",
    "v0 = add x0 x0\nreturn v1": "there is no value 'v1'",
    "v0 = add x0 x0\nreturn v0 v0": "v0 is returned twice",
    "v0 = add x0 x0\nreturn v0:bfloat16": "v0:bfloat16 is not the result of a linear that no step reads",
    f"v0 = linear x0 c0 c1 c2 - - {LINEAR}\nreturn v0:int8": "a result is bfloat16 or float32, not v0:int8",
    f"v0 = linear x0 c0 c1 c2 - - {LINEAR}\nreturn v0 v0:bfloat16": "v0 is returned twice",
    f"v0 = linear x0 c0 c1 c2 - - {LINEAR}\nv1 = add v0 v0\nreturn v0:bfloat16": "is not the result of a linear",
}


@pytest.mark.parametrize("program", REFUSED)
def test_what_it_refuses(program):
    with pytest.raises(RuntimeError, match=REFUSED[program]):
        op(KINDS, CONSTANTS, program)


def test_an_index_outside_the_table():
    program = "v0 = embedding x0 c6 c4\nreturn v0"
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"index {index} is out of range for a table of 3"):
            op([torch.tensor([0, index])], CONSTANTS, program)
    assert torch.equal(op([torch.tensor([0, 2])], CONSTANTS, program)[0], torch.zeros(2, 8))


def test_inputs_that_do_not_go_together():
    with pytest.raises(RuntimeError, match="must match the size"):
        op([torch.ones(2, 8), torch.ones(3, 8)], [], "v0 = add x0 x1\nreturn v0")
    with pytest.raises(RuntimeError, match="an input has no axis of columns"):
        op([torch.tensor(1.0)], [], "v0 = add x0 x0\nreturn v0")


def test_a_weight_that_is_too_deep_to_be_exact():
    k = packed.DEEPEST + 1
    weight = torch.zeros(2, k, dtype=torch.int8)
    constants = [packed.pack(weight), torch.ones(2), packed.column_sums(weight)]
    with pytest.raises(RuntimeError, match="the weight has 32768 features; these kernels are exact up to 32767"):
        op([torch.ones(1, k)], constants, f"v0 = linear x0 c0 c1 c2 - - {LINEAR}\nreturn v0")


# ── exporting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_passes_opcheck():
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    w = Writer([torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.arange(3)[None]])
    words = w.both("add", w.embedding("x0", 12), w.embedding("x1", 12))
    q, qparams = w.quantize(w.norm(words), "int8")
    y, _ = w.linear_bytes(q, qparams, 5)
    for program in (encoder((2, 3)), w.program(words, y)):
        torch.library.opcheck(op.default, program, test_utils=tests)


class Layer(nn.Module):
    """A row program as a module, with its constants as buffers."""

    def __init__(self):
        super().__init__()
        _, constants, self.program = encoder((1,))
        for index, constant in enumerate(constants):
            self.register_buffer(f"c{index}", constant)

    def forward(self, x, y):
        return op([x, y], list(self.buffers()), self.program)


def test_is_exported_and_compiled_with_free_sizes():
    inputs, _, _ = encoder((2, 3))
    expected = Layer()(*inputs)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    exported = torch.export.export(Layer(), tuple(inputs), dynamic_shapes=shapes, strict=False).module()
    assert_equal(exported(*inputs), expected)
    other, _, _ = encoder((5, 7), seed=4)
    assert_equal(exported(*other), Layer()(*other))
    torch._dynamo.reset()
    again = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    assert_equal(again(*inputs), expected)
