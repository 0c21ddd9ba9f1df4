"""ExecuTorch programs in ExecuTorch's own runtime: the numbers of the graph they were written of, in int8."""

import sys

import pytest
import torch
from captured import converted as model
from pt2e_graphs import LINEARS, Chain, X, captured, chain, converted, inputs, named, written
from torch import nn

import fxquant as fxq
from fxquant.verification.verification import Status

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of ExecuTorch's and torchao's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


SCHEME = "int8 per-tensor × int8 per-channel → int8"


def run(report, *args):
    """Return what the program of an export computes."""
    runtime = pytest.importorskip("executorch.runtime")
    program = runtime.Runtime.get().load_program(report.folder / "model.pte")
    return program.load_method("forward").execute(list(args))


@pytest.fixture(scope="session")
def executorch(torchao):
    """The package, or a skip: pip install fxquant[executorch]."""
    package = pytest.importorskip("executorch.exir")
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=True):  # it traces a graph more than ten times
        yield package


@pytest.mark.slow
def test_encoder_runs_every_linear_in_int8(executorch, tmp_path):
    report = fxq.export(converted("dynamic"), tmp_path / "out", format="executorch")
    quantized = [row for row in fxq.ledger(converted("dynamic")).rows if row.family == "linear" and row.quantized]
    assert len(quantized) == LINEARS
    assert f"XNNPACK runs {LINEARS} of {LINEARS} quantized linears in int8" in report.summary()
    assert report.files == ("model.pte",)
    dialect = fxq.to_pt2e(converted("dynamic"), target="xnnpack")
    for args in ((), (3, 9, 1), (1, 4, 2)):
        for ours, theirs in zip(dialect(**named(*args)).values(), run(report, *inputs(*args)), strict=True):
            error = (theirs - ours).abs()
            assert error.max() < 0.01  # a rounding that fell to the other side
            assert error.median() < 2e-3


class Mixed(nn.Module):
    """Two convolutions behind a linear, one with weights in groups behind them, and one whose result is read."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Linear(16, 16)
        self.inner, self.outer = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.groups, self.alone = nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x):
        x = torch.relu(self.inner(torch.relu(self.fixed(x))))
        return self.alone(torch.relu(self.groups(torch.relu(self.outer(x)).flatten(2))))


def mixed():
    """Return the Q/DQ graph of a model in several schemes, and its input."""
    in_groups = {"weight": {"dtype": "int4", "granularity": "per-group", "group_size": 32, "symmetric": True}}
    alone = {"weight": {"dtype": "int8", "granularity": "per-channel"}}
    wishes = {"groups": in_groups, "alone": alone}
    overrides = [fxq.Override(path=path, specs={"activation": "float", **specs}) for path, specs in wishes.items()]
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = fxq.prepare(fxq.capture(Mixed().eval(), (x,)), "x86", fxq.Recipe(base="static", overrides=overrides))
    return fxq.convert(fxq.calibrate(graph, [(x,)], progress=False)), x


def test_every_form_that_xnnpack_has_runs_in_integers(executorch, tmp_path):
    graph, x = mixed()
    report = fxq.export(graph, tmp_path / "out", format="executorch")
    assert "XNNPACK runs 3 of 3 quantized linears and 1 of 2 quantized convolutions in int8" in report.summary()
    kinds = {(each.path, each.name, each.exact) for each in report.substitutions["model"]}
    assert kinds == {
        ("groups", "bfloat16 scales", False),
        ("groups", "int8 activations", False),
        ("alone", "int8 activations", False),
        ("outer", "float convolution", True),
    }
    (found,) = run(report, x)
    dialect = fxq.to_pt2e(graph, target="xnnpack")(x)
    error = (found - dialect).abs()
    assert error.max() < 0.01
    assert error.median() < 1e-5
    assert (dialect - graph(x)).abs().max() < 0.05 * graph(x).abs().max()


def test_verify_runs_it(executorch, tmp_path):
    artifact = fxq.save(model("mlp", "static"), tmp_path / "static")
    _, row = fxq.verify(artifact, rounds=0, backends=(), runtimes=["executorch"]).rows
    assert row.status is Status.AGREES
    assert row.runtime.startswith("executorch ")


def test_graph_of_its_quantizer_comes_in(executorch):
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as theirs
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = theirs.get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(written(Chain(), X), theirs.XNNPACKQuantizer().set_global(config))
    prepared(X)
    graph = convert_pt2e(prepared)
    lowered = fxq.lower(graph, "reference")
    assert [row.dtype for row in fxq.ledger(lowered).rows if row.family] == [SCHEME] * 3
    torch.testing.assert_close(lowered(X), graph(X), rtol=0, atol=1e-5)


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(
        fxq.MissingExtraError, match=r"export to ExecuTorch needs .* pip install 'fxquant\[executorch\]'"
    ):
        fxq.export(chain(), tmp_path / "out", format="executorch")


def test_other_targets_are_unknown(tmp_path):
    with pytest.raises(fxq.ConfigError, match="unknown target 'vulkan' for ExecuTorch: known is xnnpack"):
        fxq.export(chain(), tmp_path / "out", format="executorch", target="vulkan")


def test_float_graph_is_refused(tmp_path):
    with pytest.raises(fxq.ExportError, match="captured and not quantized"):
        fxq.export(captured(), tmp_path / "out", format="executorch")
