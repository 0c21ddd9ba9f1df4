"""observe, convert, share_qparams and lower, one after the other on small graphs; golden text for each."""

import pytest
import torch
from golden import check_golden
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant import observers
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.numerics import choose_qparams, fake_quantize
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE
from fxquant.spec import QParams, QuantSpec

pytestmark = pytest.mark.usefixtures("float32_where_native")


class Chain(nn.Module):
    """Two linears with relu and value-preserving ops in between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.second(hidden.view(-1, 2, 6).transpose(0, 1)[:, 1:])


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(16, 4)

    def forward(self, x):
        return self.third(torch.cat([self.first(x), self.second(x)], dim=-1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def x(seed=0):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def prepared(model, *inputs, recipe="static", backend="reference"):
    return fxq.prepare(fxq.capture(model.eval(), inputs), backend, recipe)


def converted(model, *inputs, recipe="static", backend="reference"):
    gm = prepared(model, *inputs, recipe=recipe, backend=backend)
    return fxq.convert(fxq.calibrate(gm, [inputs]) if recipe == "static" else gm)


def targets(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def test_prepare_leaves_the_given_graph_as_it_was():
    graph = fxq.capture(Chain().eval(), (x(),))
    before = [node.format_node() for node in graph.graph.nodes]
    fxq.prepare(graph, "reference", "static")
    assert [node.format_node() for node in graph.graph.nodes] == before


def test_observers_do_not_change_the_result():
    graph = fxq.capture(Chain().eval(), (x(),))
    assert torch.equal(fxq.prepare(graph, "reference", "static")(x()), graph(x()))


def test_edges_that_read_one_value_share_an_observer():
    gm = prepared(Joined(), x())
    observers = [node for node in gm.graph.nodes if node.op == "call_module"]
    assert [node.args[0].name for node in observers] == ["x", "cat"]
    assert len(observers[0].users) == 2


def test_dynamic_and_weight_only_recipes_need_no_observer():
    for recipe in ("dynamic", "weight-only", "weight-only-int4"):
        assert not [node for node in prepared(Chain(), x(), recipe=recipe).graph.nodes if node.op == "call_module"]


def test_weights_become_integers_with_the_formula_of_the_spec():
    model = Chain()
    gm = converted(model, x())
    tensors = dict(gm.named_buffers())
    spec = QuantSpec(granularity="per-channel", axis=0, symmetric=True)
    assert tensors["first.weight_int8"].dtype is torch.int8
    rebuilt = tensors["first.weight_int8"] * tensors["first.weight_int8_scale"][:, None]
    weight = model.first.weight.detach()
    torch.testing.assert_close(rebuilt, fake_quantize(weight, choose_qparams(weight, spec), spec))
    assert not [name for name, _ in gm.named_parameters()], "no float weight is left"


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
def test_groups_of_a_weight_become_integers(dtype, symmetric):
    """Four bits are stored two to a byte; zero points take a byte each, or one for all."""
    changes = {"dtype": dtype, "group_size": 5, "symmetric": symmetric}
    recipe = fxq.Recipe(base="weight-only-int4", specs={"weight": changes})
    model = Chain()
    gm = converted(model, x(), recipe=recipe)
    tensors = dict(gm.named_buffers())
    stored = {name.rpartition(dtype)[2]: tensor for name, tensor in tensors.items() if name.startswith("first.weight")}
    packed, form = dtype.endswith("4"), torch.uint8 if dtype.startswith("u") else torch.int8
    assert (stored[""].shape, stored[""].dtype) == ((12, 4 if packed else 8), torch.uint8 if packed else form)
    assert (stored["_zero_point"].shape, stored["_zero_point"].dtype) == (() if symmetric else (12, 2), form)
    spec = QuantSpec(dtype=dtype, granularity="per-group", group_size=5, symmetric=symmetric, observer="least_squares")
    expected = Chain().eval()
    for layer in (expected.first, expected.second):
        observer = observers.create(spec)
        weight = observer(layer.weight.detach())
        layer.weight = nn.Parameter(fake_quantize(weight, observer.qparams(), spec))
    torch.testing.assert_close(gm(x(1)), expected(x(1)))


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_four_bits_need_no_groups(granularity):
    recipe = fxq.Recipe(base="weight-only-int4", specs={"weight": {"granularity": granularity}})
    qdq = converted(Chain(), x(), recipe=recipe, backend="x86")
    assert targets(qdq).count("fxquant.unpack_int4.default") == 2
    assert "fxquant.dequantize_groups.default" not in targets(qdq)
    for backend in ("x86", "reference"):
        lowered = fxq.lower(qdq, backend)
        assert not {"fxquant.unpack_int4.default", "aten.linear.default"} & set(targets(lowered))
        torch.testing.assert_close(lowered(x(1)), qdq(x(1)), atol=1e-5, rtol=1e-4)


def test_bias_becomes_int32_at_the_product_of_the_scales():
    model = Chain()
    tensors = dict(converted(model, x()).named_buffers())
    scale = tensors["qparams.x_scale"] * tensors["first.weight_int8_scale"]
    torch.testing.assert_close(tensors["first.bias_int32_scale"], scale)
    expected = (model.first.bias.detach().double() / scale.double()).round().to(torch.int32)
    assert (tensors["first.bias_int32"] - expected).abs().max() <= 1


def test_dynamic_graph_computes_its_scales():
    gm = converted(Joined(), x(), recipe="dynamic")
    assert targets(gm).count("fxquant.choose_qparams.default") == 2, "the two linears on x share one"


def test_quantize_moves_before_ops_that_hand_values_on():
    gm = converted(Chain(), x())
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    relu_free = [node.name for node in calls if node.target is torch.ops.aten.relu.default]
    assert len(relu_free) == 1, "relu belongs to linear_relu and stays"
    view = next(node for node in calls if node.target is torch.ops.aten.reshape.default)
    assert view.args[0].target is QUANTIZE
    assert edit.info(view).dtype is torch.int8
    for node in calls:
        if node.target is QUANTIZE:
            assert node.args[0].target is not DEQUANTIZE, "no needless dequantize-quantize pair"


def test_moving_quantize_changes_no_number():
    model = Chain().eval()
    gm = converted(model, x())
    tensors = dict(gm.named_buffers())
    spec = QuantSpec()
    params = QParams(tensors["qparams.slice_1_scale"], tensors["qparams.slice_1_zero_point"])
    hidden = (fake(model.first, gm, x()).relu()).view(-1, 2, 6).transpose(0, 1)[:, 1:]
    expected = functional.linear(
        fake_quantize(hidden, params, spec), dequantized(tensors, "second"), bias(tensors, "second")
    )
    torch.testing.assert_close(gm(x()), expected)


def dequantized(tensors, layer):
    return tensors[f"{layer}.weight_int8"] * tensors[f"{layer}.weight_int8_scale"][:, None]


def bias(tensors, layer):
    return tensors[f"{layer}.bias_int32"] * tensors[f"{layer}.bias_int32_scale"]


def fake(_, gm, value):
    tensors = dict(gm.named_buffers())
    params = QParams(tensors["qparams.x_scale"], tensors["qparams.x_zero_point"])
    return functional.linear(
        fake_quantize(value, params, QuantSpec()), dequantized(tensors, "first"), bias(tensors, "first")
    )


def test_quantize_moves_through_cat_into_each_part():
    gm = converted(Joined(), x())
    cat = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.cat.default)
    assert [part.target for part in cat.args[0]] == [QUANTIZE, QUANTIZE]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_relu_between_quantized_ops_becomes_a_clamp(symmetric):
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.pool, self.dense = nn.MaxPool2d(2), nn.Linear(4, 3)

        def forward(self, x):
            return self.dense(self.pool(x.tanh().relu()[None, None]))

    recipe = fxq.Recipe(base="static", specs={"activation": {"symmetric": symmetric}})
    model = Kept().eval()
    gm = fxq.convert(fxq.calibrate(prepared(model, x(), recipe=recipe), [(x(),)]))
    assert "aten.clamp_min.default" in targets(gm)
    assert "aten.relu.default" not in targets(gm)
    torch.testing.assert_close(gm(x()), model(x()), atol=0.05, rtol=0)


@pytest.mark.parametrize("recipe", ["static", "dynamic", "weight-only", "weight-only-int4"])
@pytest.mark.parametrize("backend", ["reference", "x86"])
@pytest.mark.parametrize("model", [Chain, Joined], ids=["chain", "joined"])
def test_lowered_equals_the_reference_graph(model, backend, recipe):
    qdq = converted(model(), x(), recipe=recipe, backend=backend)
    lowered = fxq.lower(qdq)
    assert "aten.linear.default" not in targets(lowered)
    torch.testing.assert_close(lowered(x(1)), qdq(x(1)), atol=2e-2 if recipe == "static" else 1e-5, rtol=1e-4)


def test_static_chain_stays_integer_between_two_kernels():
    lowered = fxq.lower(converted(Chain(), x()))
    first = next(node for node in lowered.graph.nodes if "linear_int8" in str(node.target))
    assert edit.info(first).dtype is torch.int8
    assert first.args[8].target == "qparams.slice_1_scale"
    assert targets(lowered).count("fxquant.quantize.default") == 1, "only the input is quantized on its own"
    assert "fxquant.dequantize.default" not in targets(lowered)


def test_tied_weights_are_quantized_once():
    qdq = fxq.convert(fxq.prepare(fxq.capture(Tied().eval(), (torch.tensor([[1, 2]]),)), "reference", "dynamic"))
    assert [name for name, t in qdq.named_buffers() if t.dtype is torch.int8] == ["table.weight_int8"]
    lowered = fxq.lower(qdq)
    assert "fxquant.embedding_int8.default" in targets(lowered)


@pytest.mark.parametrize("recipe", ["static", "dynamic", "weight-only-int4"])
def test_golden_graphs(recipe):
    """What prepare, convert and lower make of the two linears with views between them."""
    ready = prepared(Chain(), x(), recipe=recipe)
    if recipe == "static":
        fxq.calibrate(ready, [(x(),)])
    qdq = fxq.convert(ready)
    for stage, gm in (("prepared", ready), ("converted", qdq), ("lowered", fxq.lower(qdq))):
        check_golden(f"{stage}_{recipe}", to_text(gm))


def test_lowering_for_another_backend_keeps_the_numbers():
    qdq = converted(Joined(), x(), backend="x86")
    lowered = fxq.lower(qdq, "reference")
    assert "fxquant.linear_int8.default" in targets(lowered)
    assert fxq.ledger(lowered).coverage == 1.0
    torch.testing.assert_close(lowered(x(1)), qdq(x(1)), atol=1e-5, rtol=1e-4)


def test_lowered_graph_exports_and_compiles():
    lowered = fxq.lower(converted(Chain(), x()))
    again = torch.export.export(lowered, (x(),), strict=False).module()
    assert torch.equal(again(x()), lowered(x()))
    compiled = torch.compile(lowered, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x()), lowered(x()))


def test_an_edge_that_saw_only_zeros_is_an_error_that_names_it():
    gm = prepared(Chain(), x())
    with pytest.raises(fxq.FxQuantError, match="zero"):
        fxq.convert(fxq.calibrate(gm, [(torch.zeros(4, 8),)]))


def test_an_uncalibrated_graph_is_an_error_that_names_the_node():
    with pytest.raises(fxq.FxQuantError, match=r"%x in the model's own forward"):
        fxq.convert(prepared(Chain(), x()))


@pytest.mark.parametrize("stage", ["convert", "lower"])
def test_a_graph_of_another_stage_is_refused(stage):
    graph = fxq.capture(Chain().eval(), (x(),))
    with pytest.raises(fxq.FxQuantError, match=f"{stage} takes a graph that is .*; got one that is captured"):
        getattr(fxq, stage)(graph)
