import torch

from fxquant.graph.arguments import spell_out

aten = torch.ops.aten


def test_fills_in_schema_defaults_in_order():
    args, kwargs = spell_out(aten.layer_norm.default, ("x", [4]), {"bias": "b"})
    assert args == ("x", [4], None, "b", 1e-05, True)
    assert kwargs == {}


def test_keyword_only_arguments_stay_named():
    args, kwargs = spell_out(aten.gelu.default, ("x",), {})
    assert (args, kwargs) == (("x",), {"approximate": "none"})


def test_other_callables_keep_their_arguments():
    assert spell_out(len, ("x",), {"k": 1}) == (("x",), {"k": 1})
