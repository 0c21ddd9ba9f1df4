"""ExecuTorch programs in ExecuTorch's own runtime: the numbers of the graph they were written of, in int8."""

import sys

import pytest
import torch
from pt2e_graphs import LINEARS, Chain, X, captured, chain, converted, inputs, named, written

import fxquant as fxq

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


def test_fixed_scales_run_in_int8(executorch, tmp_path):
    report = fxq.export(chain(), tmp_path / "out", format="executorch")
    assert "XNNPACK runs 3 of 3 quantized linears in int8" in report.summary()
    (found,) = run(report, X)
    error = (found - fxq.to_pt2e(chain(), target="xnnpack")(X)).abs()
    assert error.max() < 0.01
    assert error.median() < 1e-5


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
