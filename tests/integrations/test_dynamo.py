"""torch.compile(model, backend="fxquant"): the graphs that Dynamo hands over, quantized like captured ones."""

import models
import pytest
import torch
from graphs import Two
from torch import nn

import fxquant as fxq
from fxquant.integrations import compiled as compiled_graphs


@pytest.fixture(autouse=True)
def _fresh():
    """Each test compiles anew: models of one class share their code, and so Dynamo's limit on graphs of it."""
    torch._dynamo.reset()
    compiled_graphs._LIVE.clear()  # which tracebacks of other tests may hold on to
    before = torch._dynamo.config.fail_on_recompile_limit_hit
    yield
    torch._dynamo.config.fail_on_recompile_limit_hit = before


def compiled(model, **options):
    return torch.compile(model, backend="fxquant", options=options)


def one_layer(name):
    """Return a tiny model with the first layer only of each stack, and its inputs."""
    model, inputs = getattr(models, name)()
    for module in list(model.modules()):
        for child, layers in module.named_children():
            stack = child in ("layers", "h", "block") or (child == "layer" and "Encoder" in type(module).__name__)
            if stack and isinstance(layers, nn.ModuleList):
                setattr(module, child, layers[:1])
    return model, inputs


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_equals_the_quantized_capture_at_every_size(name):
    model, inputs = one_layer(name)
    expected, fast = fxq.quantize(model, inputs), torch.compile(model, backend="fxquant", dynamic=True)
    with torch.no_grad():
        for batch, sequence in ((2, 12), (3, 17), (2, 9)):
            inputs = models.encoder_inputs(batch, sequence)
            found = fast(**inputs)
            assert type(found) is type(model(**inputs))
            torch.testing.assert_close(found[0], expected(**inputs)[0], rtol=0, atol=1e-5)
    (graph,) = fxq.compiled(model)
    products = [row for row in fxq.ledger(graph).rows if row.family == "linear"]
    assert products and all(row.quantized for row in products)
    wanted = {row.module_path for row in fxq.ledger(expected).rows if row.quantized}
    assert {row.module_path for row in fxq.ledger(graph).rows if row.quantized} == wanted


def test_generate_runs_the_models_own_loop():
    model, _ = one_layer("llama")
    inputs = {"input_ids": models.ids(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "use_cache": True}
    expected = fxq.quantize(model, inputs, recipe="weight-only")
    model.forward = torch.compile(
        model.forward, backend="fxquant", dynamic=True, options={"recipe": "weight-only", "strict": True}
    )
    found = model.generate(**inputs, **options)
    tokens = found.sequences[:, :-1]
    whole = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        logits = expected(**whole).logits[:, -4:]
    # attention may be computed in bfloat16
    torch.testing.assert_close(torch.stack(found.logits, 1), logits, rtol=0, atol=0.02 * float(logits.abs().max()))
    assert len(fxq.compiled(model)) <= 4


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


def test_sizes_that_vary_compile_twice_and_share_their_weights():
    model = Two()
    fast = compiled(model)
    for rows in (4, 5, 6, 7, 9):
        fast(X[:1].repeat(rows, 1))
    first, second = fxq.compiled(model)
    held = [{name: tensor.data_ptr() for name, tensor in gm.named_buffers()} for gm in (first, second)]
    assert held[0] and held[0] == held[1]


def test_graphs_of_a_model_are_found_by_its_parameters():
    model, other = Two(broken=True), Two()
    fast = compiled(model)
    assert fxq.compiled(model) == ()
    fast(X), compiled(other)(X)
    assert len(fxq.compiled(model)) == 2
    assert fxq.compiled(fast) == fxq.compiled(model)
    assert fxq.compiled(model.second) == fxq.compiled(model)[1:]
    assert len(fxq.compiled(other)) == 1
    assert [row.module_path for row in fxq.ledger(fxq.compiled(other)[0]).rows if row.family] == ["first", "second"]


def test_modules_that_share_their_code_keep_their_own_weights():
    layers = [Two(), Two()]
    with torch.no_grad():
        layers[1].first.weight.mul_(-1)
    for layer in layers:
        assert torch.equal(compiled(layer)(X), fxq.quantize(layer, (X,))(X))


def test_a_changed_and_a_replaced_parameter_are_packed_anew():
    model = Two()
    fast = compiled(model)
    before = fast(X)
    with torch.no_grad():
        model.second.weight.mul_(2)
    changed = fast(X)
    assert torch.equal(changed, fxq.quantize(model, (X,))(X)) and not torch.equal(changed, before)
    model.second.weight = nn.Parameter(model.second.weight.detach() / 2)
    assert torch.equal(fast(X), before)
    assert fast(X).requires_grad is False


def test_options_reach_the_stages():
    model = Two()
    narrow = fxq.load_backend("reference")
    found = compiled(model, backend=narrow, recipe="weight-only")(X)
    assert torch.equal(found, fxq.quantize(model, (X,), backend="reference", recipe="weight-only")(X))
    (graph,) = fxq.compiled(model)
    assert {row.kernel for row in fxq.ledger(graph).rows if row.family} == {"fxquant.linear_weight_int8"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"recipes": "dynamic"}, "the option 'recipes': did you mean 'recipe'"),
        (
            {"recipe": "static"},
            'static ranges, which need calibration.*"ranges".*calibration=batches.*"dynamic" or "weight-only"',
        ),
        ({"recipe": "fast"}, "'fast'"),
        ({"padded_outputs": "none"}, "padded_outputs"),
    ],
    ids=["option", "static", "recipe", "padding"],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(Exception, match=f"(?s)ConfigError.*{text}"):
        compiled(Two(), **options)(X)


def test_a_mode_is_refused():
    with pytest.raises(Exception, match="mode='max-autotune', which is Inductor's"):
        torch.compile(Two(), backend="fxquant", mode="max-autotune")(X)


def test_nothing_quantized_warns_with_the_reasons():
    recipe = fxq.Recipe(overrides=(fxq.Override(quantize=False),))
    with pytest.warns(fxq.FxQuantWarning, match=r"(?s)nothing in it is quantized:.*first \(float-by-recipe\)"):
        compiled(Two(), recipe=recipe)(X)


def test_a_graph_without_products_says_so():
    with pytest.warns(fxq.FxQuantWarning, match="no matrix product and no embedding"):
        compiled(nn.ReLU())(X)


def test_strict_names_what_stays_in_float():
    affine = {"base": "dynamic", "spec": {"weight": {"symmetric": False}}}
    with pytest.raises(Exception, match=r"(?s)CoverageError.*aten.linear at first \(kernel-limit\)"):
        compiled(Two(), recipe=affine, strict=True)(X)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: compiled(nn.Sequential(nn.Linear(16, 8), nn.Dropout()).train())(X), "training mode.*eval"),
        (lambda: _autocast(compiled(Two()))(X), "autocast"),
    ],
    ids=["training", "autocast"],
)
def test_what_cannot_be_quantized_is_refused(call, text):
    with pytest.raises(Exception, match=f"(?s)CaptureError.*{text}"):
        call()


class Transformed(nn.Module):
    """A linear under what a user's code calls on it."""

    def __init__(self, transform):
        super().__init__()
        self.linear, self.transform = nn.Linear(16, 16), transform

    def forward(self, x):
        return self.transform(self.linear, x)


def _own_parameters(linear, x):
    return torch.func.functional_call(linear, dict(linear.named_parameters()), (x,))


@pytest.mark.parametrize(
    "transform", [lambda linear, x: torch.vmap(linear)(x), _own_parameters], ids=["vmap", "functional_call"]
)
def test_transforms_of_torch_func_are_quantized(transform):
    model = Transformed(transform).eval()
    with torch.no_grad():
        expected, found = model(X), compiled(model)(X)
    assert float((found - expected).abs().max()) < 0.05
    (row,) = [row for row in fxq.ledger(fxq.compiled(model)[0]).rows if row.family]
    assert row.quantized


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (lambda linear, x: torch.func.grad(lambda y: linear(y).sum())(x), r"differentiates \(torch.func.grad\)"),
        (lambda linear, x: torch.cond(x.sum() > 0, linear, torch.neg, (x,)), "calls cond, which holds graphs"),
    ],
    ids=["grad", "cond"],
)
def test_what_is_no_sequence_of_calls_is_refused(transform, text):
    with pytest.raises(Exception, match=f"(?s)CaptureError.*{text}"):
        compiled(Transformed(transform).eval())(X)


def _autocast(fast):
    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return fast(x)

    return torch.compile(run, backend="fxquant")


def test_too_many_graphs_are_an_error_that_says_what_to_do():
    model = Two()

    def run(x, factor):
        return model(x) * len(factor)

    fast = torch.compile(run, backend="fxquant", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=3):
        for count in (1, 2):
            fast(X, "a" * count)
        for _ in range(2):
            with pytest.raises(Exception, match=r"(?s)made 2 graphs.*recompile_limit = 3.*dynamic=True.*mark_dynamic"):
                fast(X, "aaa")
        fast(X, "a")
    with torch._dynamo.config.patch(recompile_limit=4):
        fast(X, "aaa")


def test_a_failure_is_no_graph_of_the_code():
    model = Two().train()
    model.dropout = nn.Dropout()
    model.forward = lambda x: model.dropout(model.first(x))
    fast = torch.compile(model, backend="fxquant", dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(3):
            with pytest.raises(Exception, match="training mode"):
                fast(X)
        model.eval()
        fast(X)


def test_suppressed_errors_are_refused():
    with (
        torch._dynamo.config.patch(suppress_errors=True, fail_on_recompile_limit_hit=False),
    ):
        found = fxq.integrations.dynamo
        with pytest.raises(fxq.FxQuantError, match="suppress_errors"):
            found.fxquant_backend(torch.fx.symbolic_trace(nn.ReLU()), [X])


def test_the_backend_is_found_by_name():
    assert "fxquant" in torch._dynamo.list_backends()
