import pytest
import torch
from graphs import canonical_graph
from torch import nn

aten = torch.ops.aten


def normalised(*modules):
    """Return modules whose batch norms have seen something, so that they are no identities."""
    model = nn.Sequential(*modules)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    return model.eval()


FOLDED = {
    "conv2d": (normalised(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), torch.randn(2, 3, 5, 6)),
    "conv1d": (normalised(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), torch.randn(2, 3, 5)),
    "linear": (normalised(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(2, 3)),
    "two in a row": (normalised(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), torch.randn(2, 3, 5, 6)),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded_where_the_result_is_normalised(case):
    model, x = FOLDED[case]
    gm = canonical_graph(model, x)
    assert aten.batch_norm.default not in {node.target for node in gm.graph.nodes}
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model(x), rtol=1e-5, atol=1e-5)


STAY = {
    "on its own": normalised(nn.BatchNorm2d(3)),
    "behind an activation": normalised(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("case", STAY)
def test_others_stay(case):
    gm = canonical_graph(STAY[case], torch.randn(2, 3, 5, 6))
    assert aten.batch_norm.default in {node.target for node in gm.graph.nodes}
