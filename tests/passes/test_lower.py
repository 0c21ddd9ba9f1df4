"""Kernels take the place of claimed ops, one op at a time, and say why where they cannot."""

import re

import pytest
import torch
from graphs import Call
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.backends import load_backend, read_backend
from fxquant.graph import edit
from fxquant.kernels.cpu import native, packed
from fxquant.passes.lower import Lower
from fxquant.quantize import needs_calibration
from fxquant.stages import unfused

ops = torch.ops.fxquant
RECIPES = ["dynamic", "static", "weight-only", "weight-only-int4"]
BACKENDS = ["reference", "x86"]
pytestmark = pytest.mark.usefixtures("float32_where_native")


def x(*shape, seed=0):
    return torch.randn(shape or (3, 8), generator=torch.Generator().manual_seed(seed))


class Layers(nn.Module):
    """A function of two linears, `first` (8 → 8) and `second` (8 → `width`), and the inputs."""

    def __init__(self, function, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, width)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def converted(model, *inputs, recipe="dynamic", backend="reference"):
    gm = fxq.prepare(fxq.capture(model.eval(), inputs, dynamic=False), backend, recipe)
    return fxq.convert(fxq.calibrate(gm, [inputs], progress=False) if needs_calibration(gm) else gm)


def both(model, *inputs, recipe="dynamic", backend="reference", atol=1e-5):
    """Return the lowered graph, after checking it against its Q/DQ graph."""
    qdq = converted(model, *inputs, recipe=recipe, backend=backend)
    lowered = fxq.lower(qdq)
    for found, expected in zip(leaves(lowered(*inputs)), leaves(qdq(*inputs)), strict=True):
        assert found.dtype is expected.dtype
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)
    return lowered


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def called(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def reasons(gm):
    return {row.op: row.reason for row in fxq.ledger(gm).rows if row.family and row.code}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda m, x, y: m.first(x) + m.first(y), (x(), x(seed=1))),
        (lambda m, x: (m.first(x), m.first(x).relu()), (x(),)),
        (lambda m, x: m.first(x) + m.second(x), (x(),)),
        (lambda m, x, r: m.first(x) + r, (x(), torch.tensor(2.0))),
        (lambda m, x: m.first(x) + m.first.weight.sum(), (x(),)),
        (lambda m, x: m.first(x), (x(8),)),
    ],
    ids=["twice", "twice-at-once", "two-linears", "scalar-residual", "weight-in-float-too", "vector"],
)
def test_every_linear_becomes_a_kernel(function, inputs, recipe, backend):
    lowered = both(Layers(function), *inputs, recipe=recipe, backend=backend)
    assert "aten.linear.default" not in called(lowered)
    assert fxq.ledger(lowered).coverage == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_bias_computed_at_run_time_stays_float(recipe, backend):
    model = Layers(lambda m, x, bias: functional.linear(x, m.first.weight, bias * 2))
    assert fxq.ledger(both(model, x(), x(8), recipe=recipe, backend=backend)).coverage == 1.0


def test_biases_computed_at_run_time_do_not_merge():
    model = Layers(
        lambda m, x, b: (functional.linear(x, m.first.weight, b * 2), functional.linear(x, m.second.weight, b)), 64
    )
    model.first = nn.Linear(8, 64)
    both(model, x(), x(64), backend="x86")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda m, x: functional.linear(x, m.first.weight, m.one), (x(),), r"bias %one is \[1\], not one value"),
        (lambda m, x, r: m.first(x) + r, (x(), torch.ones(8, dtype=torch.float64)), "residual .* is torch.float64"),
        (lambda m, x, r: m.first(x) + r, (x(), torch.ones(8, dtype=torch.int64)), "residual .* is torch.int64"),
        (lambda m, x: (y := m.first(x)) + y, (x(),), "residual is %linear itself"),
        (lambda m, x, r: m.first(x) + r, (x(1, 8), x(4, 8)), r"broadcasts the output from \[1, 8\] to \[4, 8\]"),
    ],
    ids=["bias-of-one", "double-residual", "integer-residual", "own-residual", "broadcast"],
)
def test_what_a_kernel_cannot_add_is_left_to_aten(function, inputs, reason, recipe, backend):
    model = Layers(function)
    model.one = nn.Parameter(torch.ones(1))
    lowered = both(model, *inputs, recipe=recipe, backend=backend)
    rows = [row for row in fxq.ledger(lowered).rows if row.op in ("aten.linear", "aten.add.Tensor")]
    assert len(rows) == 1
    assert re.search(reason, rows[0].reason), rows


@pytest.mark.parametrize("attention", ["sdpa", "products"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_and_products(attention, backend):
    """With a static recipe the second product requantizes for the projection that follows it."""

    def function(m, x):
        q, k, v = m.first(x), m.second(x), x * 1
        if attention == "sdpa":
            return m.first(functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        return m.first(torch.matmul(torch.matmul(q, k.transpose(1, 2)).tanh(), v))

    lowered = both(Layers(function), x(2, 5, 8), recipe="static", backend=backend, atol=2e-2)
    products = [node for node in lowered.graph.nodes if node.target is ops.matmul_int8.default]
    if attention == "products" and backend == "reference":
        assert [edit.info(node).dtype for node in products] == [torch.float32, torch.int8]
        assert fxq.ledger(lowered).coverage == 1.0
    else:
        assert products == []


def test_a_product_with_a_vector_is_none_of_matrices():
    vector = nn.Parameter(x(8))
    model = Call(lambda x: x @ vector)
    model.register_parameter("vector", vector)
    for recipe in RECIPES:
        lowered = both(model, x(), recipe=recipe)
        assert "is a vector, not a matrix" in reasons(lowered)["aten.matmul"]


def test_requantizing_stops_at_a_graph_output():
    """The result is handed out in float as well, so the kernel gives floats and a quantize of its own follows."""
    lowered = both(Layers(lambda m, x: ((h := m.first(x)), m.second(h))), x(), recipe="static", atol=2e-2)
    first, second = (node for node in lowered.graph.nodes if node.target is ops.linear_int8.default)
    assert [edit.info(node).dtype for node in (first, second)] == [torch.float32, torch.float32]
    hidden, _ = lowered(x())
    assert hidden.dtype is torch.float32


def test_a_chain_of_static_ops_is_integer_between_kernels():
    lowered = both(Layers(lambda m, x: m.second(m.first(x).relu())), x(), recipe="static", atol=2e-2)
    first, _ = (node for node in lowered.graph.nodes if node.target is ops.linear_int8.default)
    assert edit.info(first).dtype is torch.int8
    assert [row.dtype.split()[-1] for row in fxq.ledger(lowered).rows if row.family] == ["int8", "float32"]


def own(kernel="", **changes):
    """Return the reference backend with the rule for linear changed."""
    data = load_backend("reference").to_dict()
    for rule in data["op"]:
        if rule["use"] == "linear":
            rule.update(changes)
            if kernel is None:
                del rule["kernel"]
    return read_backend(data, "own.toml")


def test_a_rule_without_a_kernel_stays_in_its_qdq_form():
    qdq = converted(Layers(lambda m, x: m.first(x)), x(), backend=own(kernel=None))
    lowered = fxq.lower(qdq)
    assert torch.equal(lowered(x()), qdq(x()))
    (row,) = [row for row in fxq.ledger(lowered).rows if row.family]
    assert (row.kernel, row.code, row.reason) == ("Q/DQ", "fallback", "the rule names no kernel")
    assert fxq.ledger(lowered).coverage == 0.0


def test_a_kernel_that_refuses_is_a_reason(monkeypatch):
    from fxquant.kernels import table

    kernels = table.kernels("reference")
    refuses = table.Kernel(lambda site: "not on Sundays", kernels["linear_int8"].serves, kernels["linear_int8"].needs)
    monkeypatch.setitem(kernels._entries, "linear_int8", refuses)
    qdq = converted(Layers(lambda m, x: m.first(x)), x())
    lowered = fxq.lower(qdq)
    assert torch.equal(lowered(x()), qdq(x()))
    assert reasons(lowered) == {"linear": "kernel linear_int8: not on Sundays"}


def test_lowering_counts_and_leaves_the_given_graph():
    qdq = converted(Layers(lambda m, x: m.second(m.first(x).relu())), x())
    before = str(qdq.graph)
    assert Lower(load_backend("reference")).apply(edit.clone(qdq)) == 2
    fxq.lower(qdq)
    assert str(qdq.graph) == before


def test_one_weight_is_packed_once():
    if not native.available():
        pytest.skip("torch's GEMMs pack at run time")
    lowered = both(Layers(lambda m, x, y: m.first(x).relu() + m.first(y)), x(), x(seed=1), backend="x86")
    assert [name for name, _ in lowered.named_buffers() if "packed" in name] == ["first.weight_int8_packed"]


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("kernel", ["linear_int8", "linear_weight_only"])
def test_without_a_compiler_weights_are_dequantized_at_each_call(kernel, dtype, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    granularity = {"granularity": "per-channel" if kernel == "linear_int8" else "per-group"}
    recipe = fxq.Recipe(base="weight-only", specs={"weight": {"dtype": dtype, **granularity}})
    lowered = both(Layers(lambda m, x: m.second(m.first(x).relu())), x(), recipe=recipe, backend="x86")
    plain = "fxquant.x86_linear_weight_int8.default", "fxquant.linear_weight_only.default"
    assert called(lowered) == [plain[(dtype, kernel) != ("int8", "linear_int8")]] * 2
    assert fxq.ledger(lowered).coverage == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_weight_only_result_is_not_quantized_by_the_kernel(backend, dtype):
    """An own file may ask for it: the first linear reads floats, and writes what the second reads in integers."""
    data = load_backend(backend).to_dict()
    data["spec"]["integers"] = {"dtype": "uint8"}
    kernel = "linear_int8" if dtype == "int8" else "linear_weight_only"
    data["op"] = [
        {"use": "linear_relu", "kernel": kernel, "x": "activation", "weight": "weight", "output": "integers"},
        {"use": "linear", "kernel": "linear_int8", "x": "integers", "weight": "embedding"},
    ]
    own = read_backend(data, "own")
    recipe = fxq.Recipe(base="weight-only", specs={"weight": {"dtype": dtype}})
    qdq = converted(Layers(lambda m, x: m.second(m.first(x).relu())), x(), recipe=recipe, backend=own)
    lowered = fxq.lower(qdq)
    torch.testing.assert_close(lowered(x()), qdq(x()))
    assert "gives float32, where its result is to be quantized" in reasons(lowered)["linear_relu"]


def test_a_quantize_that_no_kernel_took_is_the_sets_own():
    if not native.available():
        pytest.skip("torch's own ops quantize")
    lowered = unfused(both(Layers(lambda m, x: m.first(x)), x(), recipe="static", backend="x86", atol=2e-2))
    assert "fxquant.quantize_static.default" in called(lowered)
    assert "fxquant.quantize.default" not in called(lowered)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("more", [0, 1])
def test_a_linear_deeper_than_the_packed_kernels_are_exact_is_torchs(more, recipe):
    if not native.available():
        pytest.skip("torch's own ops multiply")
    depth = packed.DEEPEST + more
    model = nn.Sequential(nn.Linear(depth, 3))
    with torch.no_grad():
        model[0].weight.fill_(0.01)  # the greatest sum of weights that a row can have
    lowered = both(model, x(2, depth) + 3, recipe=recipe, backend="x86", atol=2e-2)
    assert any("packed_linear" in row.kernel for row in fxq.ledger(lowered).rows) is not bool(more)
    assert fxq.ledger(lowered).coverage == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_inside_stays_float(backend):
    """Under autocast, or in a model's own casts, a linear may be handed bfloat16."""
    model = Layers(lambda m, x: functional.linear(x.bfloat16(), m.first.weight.bfloat16()).float())
    lowered = both(model, x(), backend=backend)
    assert fxq.ledger(lowered).coverage == 0.0
    plain = both(Layers(lambda m, x: m.second(m.first(x).relu())), x(), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(x()), plain(x()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_not_hidden(value, backend):
    """A scale found at run time carries NaN on, as the float model does; other rows are untouched."""
    inputs = x(4, 8)
    lowered = both(Layers(lambda m, x: m.second(functional.relu(m.first(x)))), inputs, backend=backend)
    expected = lowered(inputs)
    inputs[1, 3] = value
    found = lowered(inputs)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])
