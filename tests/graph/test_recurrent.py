import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fxquant.graph.recurrent import unrolled


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [leaf for each in value for leaf in tensors(each)]


KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CASES = [
    *(("LSTM", {}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})),
    *((kind, {"bidirectional": True, "num_layers": 2}) for kind in KINDS),
    *((kind, {"batch_first": True, "bias": False}) for kind in KINDS),
    ("LSTM", {"num_layers": 3}),
    ("LSTM", {"proj_size": 2, "bidirectional": True, "num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{kind} {' '.join(options)}" for kind, options in CASES])
def test_equals_the_layer_with_and_without_states(kind, options):
    torch.manual_seed(0)
    own = KINDS[kind](3, 5, **options).eval()
    steps = unrolled(own)
    x = torch.randn(4, 6, 3)
    count = own.num_layers * (2 if own.bidirectional else 1)
    state = torch.randn(count, 4 if own.batch_first else 6, 5)
    states = (state[..., : own.proj_size or 5], -state) if kind == "LSTM" else state
    with torch.no_grad():
        for args in ((x,), (x, states), (x[0],)):
            expected, found = own(*args), steps(*args)
            assert type(expected) is type(found) and type(expected[1]) is type(found[1])
            for a, b in zip(tensors(expected), tensors(found), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_shares_the_weights_and_takes_packed_sequences_as_they_are():
    own = nn.LSTM(3, 5)
    steps = unrolled(own)
    assert {id(p) for p in steps.parameters()} == {id(p) for p in own.parameters()}
    packed = pack_sequence([torch.ones(4, 3), torch.ones(2, 3)])
    assert torch.equal(steps(packed)[0].data, own(packed)[0].data)


def test_other_modules_are_not_unrolled():
    assert unrolled(nn.LSTMCell(2, 2)) is None
