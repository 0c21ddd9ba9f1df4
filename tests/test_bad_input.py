"""Models and inputs that are not as they should be: they work, or the error says what and where."""

import re

import pytest
import torch
from models import bert, mlp
from torch import nn

import fxquant as fxq
from fxquant.graph import edit
from fxquant.kernels.cpu import emitters, isa, native


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.down(self.dropout(torch.relu(self.up(x))))


def sqnr(expected, found):
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


X = torch.randn(4, 8)


def test_train_mode_is_captured_as_eval_and_put_back():
    model = Inner().train()
    lowered = fxq.quantize(model, X)
    assert model.training and model.dropout.training
    assert torch.equal(lowered(X), lowered(X))
    with torch.no_grad():
        assert sqnr(model.eval()(X), lowered(X)) > 30


def test_hooks_run_under_capture():
    model = Inner().eval()
    model.up.register_forward_hook(lambda module, args, output: output * 2)
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, {"x": kwargs["x"] + 1}), with_kwargs=True)
    with torch.no_grad():
        expected = model(x=X)
    assert torch.equal(fxq.capture(model, X)(X), expected)
    assert len(model.up._forward_hooks) == 1


def test_hook_that_cannot_be_captured_stays_with_the_rest():
    model = nn.Sequential(Inner(), Inner()).eval()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(float(output.sum())))
    program = fxq.capture(model, X)
    seen.clear()
    with torch.no_grad():
        assert torch.equal(program(X), model(X))
    assert len(seen) == 2 and seen[0] == seen[1]


def test_tied_weights_and_a_module_called_twice_are_quantized_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.other = nn.Linear(16, 8, bias=False)
            self.other.weight = self.inner.down.weight

        def forward(self, x):
            return self.other(torch.relu(self.inner.up(self.inner(self.inner(x)))))

    model = Tied().eval()
    qdq = fxq.convert(fxq.prepare(fxq.capture(model, X), "x86", "dynamic"))
    integers = [name for name, tensor in qdq.named_buffers() if tensor.dtype is torch.int8]
    assert len(integers) == 2
    with torch.no_grad():
        assert sqnr(model(X), fxq.lower(qdq)(X)) > 25


class Counting(nn.Module):
    """Counts its calls in a buffer that it writes to, or puts another in the place of."""

    def __init__(self, count):
        super().__init__()
        self.inner, self.count = Inner(), count
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.count(self.calls)
        return self.inner(x) * self.calls


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (lambda calls: calls.add_(1), "forward changes 'calls', a tensor of the model"),
        (lambda calls: calls + 1, "forward puts another tensor in the place of 'calls'"),
    ],
    ids=["written to", "replaced"],
)
def test_module_that_changes_a_buffer_stays_the_models_own(count, text):
    model = Counting(count).eval()
    program = fxq.capture(model, X)
    assert model.calls == 0
    assert text in fxq.ledger(program).summary()
    first, second = program(X), program(X)
    torch.testing.assert_close(second, 2 * first)


def test_buffer_that_is_moved_or_made_again_is_no_change():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.register_buffer("places", torch.arange(8.0))

        def forward(self, x):
            self.places = torch.arange(8.0).to(x.device)
            return self.inner(x + self.places)

    model = Moving().eval()
    with torch.no_grad():
        assert torch.equal(fxq.capture(model, X)(X), model(X))


def test_scripted_modules_are_named():
    with pytest.raises(fxq.CaptureError, match=r"TorchScript.*give the module it was made of"):
        fxq.capture(nn.Sequential(torch.jit.trace(nn.Linear(8, 8), X)), X)


def test_control_flow_on_data_is_named_where_no_module_is_left():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(fxq.CaptureError, match=r"\(Branch\) at test_bad_input.py:\d+: GuardOnDataDependentSymNode"):
        fxq.quantize(Branch(), X)


def test_inputs_on_another_device_are_named():
    model, inputs = mlp()
    with pytest.raises(
        fxq.InputError, match=r"'x' is on meta, and the model on cpu \('.*'\): move it with .to\('cpu'\)"
    ):
        fxq.capture(model, {"x": inputs["x"].to("meta")})
    model, inputs = bert()
    with pytest.raises(fxq.InputError, match="'attention_mask' is on meta"):
        fxq.capture(model, {**inputs, "attention_mask": inputs["attention_mask"].to("meta")})


def test_a_model_on_two_devices_is_named_with_both_places():
    model = Inner().eval()
    model.down.weight = nn.Parameter(model.down.weight.to("meta"))
    for verb in (fxq.capture, fxq.quantize):
        with pytest.raises(
            fxq.CaptureError,
            match=r"'up.weight' is on cpu and 'down.weight' on meta; move all of it to one, as by model",
        ):
            verb(model, X)


def test_a_graph_on_two_devices_is_named_with_both_places():
    captured = fxq.capture(Inner().eval(), X)
    qdq = fxq.convert(fxq.prepare(captured, "reference", "dynamic"))
    for verb, graph, name in ((fxq.prepare, captured, "down.weight"), (fxq.lower, qdq, "down.weight_int8")):
        edit.set_tensor(graph, name, edit.constants(graph)[name].to("meta"))
        with pytest.raises(
            fxq.FxQuantError, match=r"the graph lies on two devices: '.*' is on \w+ and '.*' on \w+; move"
        ):
            verb(graph)


OUT_OF_MEMORY = {
    "Python": MemoryError(),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 GB\nmore"),
    "card": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_no_memory_to_pack_in_leaves_everything_as_it_was(error, monkeypatch):
    if not native.available():
        pytest.skip("weights are packed for the C++ kernels")
    model = Inner().eval()
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    qdq = fxq.convert(fxq.prepare(fxq.capture(model, X), "x86", "dynamic"))
    text, expected = str(qdq.graph), qdq(X)
    packed = []

    def pack(weight):
        packed.append(weight)
        if len(packed) % 2 == 0:  # the second of the two
            raise error
        return weight

    monkeypatch.setattr(emitters, "pack", pack)
    for verb in (lambda: fxq.quantize(model, X), lambda: fxq.lower(qdq)):
        with pytest.raises(
            fxq.FxQuantError, match=r"no memory is left to pack the weight of linear at down: .* as it was"
        ):
            verb()
    monkeypatch.undo()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is state[name][0]
        assert torch.equal(tensor, state[name][1])
    assert str(qdq.graph) == text
    assert torch.equal(qdq(X), expected)
    assert sqnr(expected, fxq.lower(qdq)(X)) > 100


def test_other_errors_of_an_emitter_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(emitters, "pack", lambda weight: torch.zeros(2) + torch.zeros(3))
    if native.available():
        with pytest.raises(RuntimeError, match="must match the size"):
            fxq.quantize(Inner().eval(), X)


def test_instructions_that_this_cpu_lacks_cannot_be_forced(monkeypatch):
    if not native.available():
        pytest.skip("no C++ kernels")

    def use_isa(name):
        if name:
            raise RuntimeError(f"fxquant: this CPU has no {name}\nException raised from …")
        return "avx2"

    native._usable.cache_clear()
    monkeypatch.setattr(native, "_load", lambda: None)
    monkeypatch.setattr(native, "use_isa", use_isa)
    monkeypatch.setenv(isa.VARIABLE, "avx_vnni")
    with pytest.raises(fxq.ConfigError, match=r"^FXQUANT_ISA = 'avx_vnni': .* this CPU has no avx_vnni$"):
        fxq.quantize(Inner().eval(), X)
    monkeypatch.undo()
    native._usable.cache_clear()
    monkeypatch.setattr(native, "_load", lambda: None)
    assert native.available()


SPEC = {"dtype": "int8", "granularity": "per-channel", "symmetric": True}
ODD = {
    "int32 weights": (
        {"weight": {"dtype": "int32"}},
        "int32 is for a bias, whose scale is S_x·S_w, and weight is none",
    ),
    "no such axis": ({"weight": {**SPEC, "axis": 2}}, r"axis = 2 is none of weight, which is \[16, 8\]"),
    "float8 activations": (
        {"activation": {"dtype": "float8_e4m3fn", "granularity": "per-token", "dynamic": True, "symmetric": True}},
        "the activations have to be integers",
    ),
    "groups": ({"weight": {"granularity": "per-group", "symmetric": True}}, "the weight has to be int8, symmetric"),
}


@pytest.mark.parametrize(("changes", "text"), ODD.values(), ids=ODD)
def test_schemes_that_no_kernel_can_have_are_reasons_and_no_crash(changes, text):
    data = {
        "name": "mine",
        "kernels": "reference",
        "spec": {"activation": {"granularity": "per-token", "dynamic": True}, "weight": SPEC, **changes},
        "op": [{"use": "linear", "kernel": "linear_int8", "x": "activation", "weight": "weight"}],
    }
    backend = fxq.backends.read_backend(data, "mine.toml")
    model = Inner().eval()
    lowered = fxq.quantize(model, X, backend=backend, recipe=fxq.Recipe())
    row = next(row for row in fxq.ledger(lowered).rows if row.module_path == "up" and row.family)
    assert not row.quantized
    assert re.search(text, row.reason)
    with torch.no_grad():
        assert sqnr(model(X), lowered(X)) > 20


def test_a_bias_whose_scale_is_not_one_for_each_output_stays_in_float():
    data = {
        "name": "mine",
        "kernels": "reference",
        "spec": {"activation": {"granularity": "per-channel", "axis": 1}, "weight": SPEC, "bias": {"dtype": "int32"}},
        "op": [{"use": "linear", "x": "activation", "weight": "weight", "bias": "bias"}],
    }
    backend = fxq.backends.read_backend(data, "mine.toml")
    lowered = fxq.quantize(Inner().eval(), X, backend=backend, recipe=fxq.Recipe(), calibration=[X])
    assert {"up.bias", "down.bias"} <= set(edit.constants(lowered))
    assert torch.isfinite(lowered(X)).all()
