"""A part of the zoo, and the page that is made of it."""

import json

import pytest
import torch

from fxquant.graph.capture import capture

# Of each kind of model one that other tests do not quantize.
NAMES = [
    "xlnet", "deberta_v2", "squeezebert", "bloom", "gemma2", "falcon", "mixtral", "marian", "vit", "convnext",
    "data2vec_audio", "nn.MultiheadAttention",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_captured_equal_and_quantized(script, name):
    zoo = script("zoo")
    (specimen,) = zoo.specimens([name])
    result = zoo.measure(specimen, attention=False)
    assert not result.failure
    assert result.rung == "own attention"
    assert set(result.equal.values()) == {"="} and len(result.equal) == 5
    assert result.linear_coverage == 1.0
    assert all(reason.startswith("float-by-rule") for reason in result.reasons)
    assert result.sqnr > 25


def test_zoo_is_large_and_its_page_tells_what_failed(script, tmp_path):
    zoo = script("zoo")
    names = [each.name for each in zoo.specimens()]
    assert len(names) == len(set(names)) >= 70
    good, bad = zoo.Result("bert", "encoder", "own attention", sqnr=20.0), zoo.Result("x", "y", failure="Error: why")
    page = zoo.page([vars(good), vars(bad)], "a machine")
    assert "captured: 1 of 2" in page and "- x: Error: why" in page and "- bert, 20.0 dB: not explained" in page
    turned = zoo.Result(
        "m", "e", "own attention", sqnr=20.0, outputs=[20.0], choices={"turned": 1, "of": 9, "sqnr": 31}
    )
    assert "turns 1 of 9 choices" in zoo.page([vars(turned)], "") and "float model 31.0 dB" in zoo.page(
        [vars(turned)], ""
    )
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(json.dumps(vars(each)) for each in (good, bad)))
    zoo.main(["--read", str(file), "--output", str(tmp_path / "zoo.md")])
    assert "captured: 1 of 2" in (tmp_path / "zoo.md").read_text()


class Router(torch.nn.Module):
    """Two experts, of which the one with the greater score takes a row."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

    def forward(self, x, score):
        return self.experts[score.topk(1).indices[:, 0]] * x


def test_choices_of_the_float_model_are_taken_over(script):
    choices = script("zoo_choices")
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.0]])
    inputs = {"x": torch.ones(2, 2), "score": scores}
    wanted = capture(Router(), inputs)
    turned = capture(Router(), inputs)
    (topk,) = [node for node in turned.graph.nodes if node.target is torch.ops.aten.topk.default]
    with turned.graph.inserting_before(topk):
        topk.update_arg(0, turned.graph.call_function(torch.ops.aten.neg.default, (topk.args[0],)))
    turned.recompile()
    outputs, count, of = choices.as_float(wanted, turned, inputs)
    assert (count, of) == (2, 2)
    torch.testing.assert_close(outputs, wanted(**inputs))
