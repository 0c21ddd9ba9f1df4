import torch
from torch import nn

from fxquant.graph import edit
from fxquant.graph.capture import capture


class Sliced(nn.Module):
    """Slices by a number that is in a tensor, as DeBERTa does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        length = torch.tensor(min(x.shape[1], 8)).item()
        return self.linear(x[:, :length])


def test_sizes_that_depend_on_data_have_those_of_the_example():
    model = Sliced()
    gm = capture(model, torch.ones(2, 5, 4))
    (node,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert edit.info(node).shape == (2, 5, 4) and edit.info(node).dynamic == (True, True, False)
    with torch.no_grad():
        assert torch.equal(gm(torch.ones(3, 6, 4)), model(torch.ones(3, 6, 4)))
