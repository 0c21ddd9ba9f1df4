import pytest
import torch
from captured import captured
from models import mlp
from torch import nn

from fxquant.errors import ConfigError, InputError
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.program import ADAPTERS, Program


class Halves(nn.Module):
    """Two callables that share a linear layer, under one path and under two."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)


class First(Halves):
    def forward(self, x):
        return self.shared(x)


class Second(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.renamed = shared
        self.own = nn.Linear(4, 4)

    def forward(self, x):
        return self.own(self.renamed(x))


@pytest.fixture
def graphs():
    torch.manual_seed(0)
    first = First()
    x = torch.randn(2, 4)
    return {"forward": capture(first, x), "second": capture(Second(first.shared), x)}


def test_forward_adapter_calls_as_the_model_was_called():
    model, inputs, graph = captured("bert")
    program = Program({"forward": graph})
    for found in (program(**inputs), program(*inputs.values())):
        assert type(found) is type(model(**inputs))
        assert torch.equal(found[0], model(**inputs)[0])
    with pytest.raises(InputError, match="'input_ids' is missing"):
        program(attention_mask=inputs["attention_mask"])


def test_tensor_read_by_two_graphs_is_one_object_stored_once(graphs):
    program = Program(graphs)
    tensors, names = program.tensors(), program.names()
    assert sorted(tensors) == ["own.bias", "own.weight", "shared.bias", "shared.weight"]
    assert names["second"]["renamed.weight"] == names["forward"]["shared.weight"] == "shared.weight"
    second = program.graph("second")
    assert second.get_parameter("renamed.weight") is program.graph("forward").get_parameter("shared.weight")
    assert tensors["shared.weight"] is second.get_parameter("renamed.weight")
    assert len(list(program.parameters())) == 4


def test_copies_are_not_shared_and_keep_apart_by_name():
    model, inputs = mlp()
    other, _ = mlp()
    program = Program({"forward": capture(model, inputs), "other": capture(other, inputs)})
    names = program.names()
    assert names["forward"]["up.weight"] == "up.weight" and names["other"]["up.weight"] == "other.up.weight"
    assert len(program.tensors()) == 8
    assert program.tensors()["other.up.weight"] is program.graph("other").get_parameter("up.weight")


def test_tied_weight_is_in_the_table_once():
    model, _, graph = captured("bert-masked-lm")
    tensors = Program({"forward": graph}).tensors()
    pointer = model.get_input_embeddings().weight.data_ptr()
    assert [name for name, t in tensors.items() if t.data_ptr() == pointer] == [
        "bert.embeddings.word_embeddings.weight"
    ]


def test_map_applies_a_verb_to_every_graph(graphs):
    def marked(gm):
        copy = edit.clone(gm)
        edit.mark(copy, stage="marked")
        return copy

    program = Program(graphs)
    mapped = program.map(marked)
    assert {edit.marks(gm)["stage"] for gm in mapped.graphs.values()} == {"marked"}
    assert {edit.marks(gm)["stage"] for gm in program.graphs.values()} == {"captured"}
    assert mapped.adapter == program.adapter and list(mapped.graphs) == ["forward", "second"]
    assert all(mapped.tensors()[name] is tensor for name, tensor in program.tensors().items())
    assert torch.equal(mapped(torch.ones(1, 4)), program(torch.ones(1, 4)))


def test_state_dict_round_trip(graphs):
    program = Program(graphs)
    before = program(torch.ones(1, 4))
    state = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    with torch.no_grad():
        program.tensors()["shared.weight"].zero_()
    assert not torch.equal(program(torch.ones(1, 4)), before)
    program.load_state_dict(state)
    assert torch.equal(program(torch.ones(1, 4)), before)


def test_reexport_of_a_program_obeys_the_names_of_arguments():
    model, inputs, graph = captured("distilbert")
    program = Program({"forward": graph})
    swapped = dict(reversed(inputs.items()))
    again = torch.export.export(program, (), swapped, strict=False)
    assert torch.equal(again.module()(**swapped)[0], model(**inputs)[0])


def test_unknown_names_are_errors(graphs):
    with pytest.raises(ConfigError, match="unknown adapter 'forwards': did you mean 'forward'"):
        Program(graphs, "forwards")
    with pytest.raises(ConfigError, match="no graph 'secnd': did you mean 'second'"):
        Program(graphs).graph("secnd")
    with pytest.raises(ConfigError, match="adapter 'forward' needs a graph 'forward'; known: encoder"):
        Program({"encoder": graphs["second"]})
    with pytest.raises(ConfigError, match=r"graph name 'a.b': expected letters, digits and underscores"):
        Program({**graphs, "a.b": graphs["second"]})
    assert "forward" in ADAPTERS
