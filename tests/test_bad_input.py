"""Models and inputs that are not as they should be: they work, or the error says what and where."""

import pytest
import torch
from models import bert, mlp
from torch import nn

import fxquant as fxq


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
