"""The backend once it is installed: found by its name, true to its file, with the integers of any other device."""

import torch
from torch import nn

import fxquant as fxq
from fxquant.verification.backend import check_backend
from fxquant.verification.devices import certify


def test_the_backend_is_found_and_does_what_its_file_says():
    torch.manual_seed(0)
    model, batches = (
        nn.Sequential(nn.Linear(40, 24), nn.Linear(24, 3)).eval(),
        [(torch.randn(8, 40),) for _ in range(4)],
    )
    graph = fxq.quantize(model, batches[0], backend="tilenpu", recipe="static", calibration=batches, strict=True)
    assert [row.kernel for row in fxq.ledger(graph).rows] == ["fxquant.npu_linear_tiles"] * 2
    torch.testing.assert_close(graph(*batches[0]), model(*batches[0]), atol=0.05, rtol=0)
    assert check_backend("tilenpu").failures == ()
    (row,) = certify(graph, ["tilenpu"]).rows
    assert (row.device, row.status, row.integers) == ("simulated tiles", "equal", 8 * 24 + 8 * 3)
