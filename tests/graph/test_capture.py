import json
import logging
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from captured import captured
from models import PLAIN, TRANSFORMERS, bert, convnet, distilbert, encoder_inputs, mlp, roberta, seq2seq_inputs, t5
from torch import nn
from torch.utils import _pytree as pytree

from fxquant.errors import CaptureError, FxQuantWarning, InputError
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.signature import signature_of

SIZES = [(2, 12), (3, 17), (12, 12), (4, 30), (1, 12), (2, 1), (1, 1)]


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformer(request):
    return captured(request.param)


def without_cache(model, inputs):
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "use_cache"):
                patch.setattr(module.config, "use_cache", False)
        return model(**inputs)


def test_equals_eager_at_every_size(transformer):
    model, inputs, gm = transformer
    make = seq2seq_inputs if "decoder_input_ids" in inputs else encoder_inputs
    for size in SIZES:
        given = make(*size)
        expected, found = without_cache(model, given), gm(**given)
        assert type(found) is type(expected) and list(found) == list(expected)
        for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
            assert torch.equal(a, b), f"differs at {size}"


def test_graph_is_plain_and_its_nodes_know_their_module(transformer):
    model, inputs, gm = transformer
    assert not gm._forward_hooks and not gm._forward_pre_hooks and not gm.training
    assert not any(parameter.requires_grad for parameter in gm.parameters())
    assert edit.marks(gm)["stage"] == "captured"
    assert edit.marks(gm)["capture"] == {"rung": "own attention", "failed": []}
    json.dumps(edit.marks(gm), allow_nan=False)
    paths = {name for name, _ in model.named_modules()}
    nodes = list(gm.graph.nodes)
    assert [node.op for node in nodes[: len(inputs)]] == ["placeholder"] * len(inputs)
    for node in nodes:
        assert edit.path_of(node) in paths
        if node.op == "call_function":
            assert "assert" not in str(node.target) and "constrain" not in str(node.target)
        if node.op == "get_attr":
            assert edit.path_of(node) == node.target.rpartition(".")[0]
            assert edit.info(node).shape == edit.get_tensor(gm, node).shape
    assert isinstance(nodes[-1].args[0], tuple)
    used = {node.target for node in nodes if node.op == "get_attr"}
    assert used == {name for name, _ in (*gm.named_parameters(), *gm.named_buffers())}


def test_linear_nodes_carry_the_path_of_their_module():
    model, _, gm = captured("bert")
    nodes = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert [edit.path_of(node) for node in nodes] == expected
    assert list(nodes[0].meta["nn_module_stack"].values())[-1][0] == expected[0]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_modules_equal_eager(name):
    model, inputs = PLAIN[name]()
    gm = capture(model, inputs)
    ((key, example),) = inputs.items()
    for rows in (1, 2, 5):
        given = torch.randn(rows, *example.shape[1:])
        with torch.no_grad():
            assert torch.equal(gm(given), model(given)) and torch.equal(gm(**{key: given}), model(given))


def test_images_of_other_sizes_are_accepted_and_other_channels_are_not():
    model, inputs = convnet()
    gm = capture(model, inputs)
    # torch before 2.13 keeps the parity of a size that a stride of two halves
    image = torch.randn(1, 3, 20, 10 if torch.__version__ < (2, 13) else 9)
    with torch.no_grad():
        assert torch.equal(gm(image), model(image))
    with pytest.raises(InputError, match="dimension 1 of 'image' has size 4, and was captured with the fixed size 3"):
        gm(torch.randn(1, 4, 16, 16))
    placeholder = next(iter(gm.graph.nodes))
    assert edit.info(placeholder).dynamic == (True, False, True, True)


def test_equal_sizes_in_the_example_are_not_tied():
    class Weighted(nn.Module):
        def forward(self, x, weight):
            return x.sum(1) * weight

    gm = capture(Weighted(), (torch.ones(4, 4), torch.ones(4)))
    assert torch.equal(gm(torch.ones(3, 5), torch.ones(3)), torch.full((3,), 5.0))


@pytest.mark.parametrize("size", [(1, 12), (1, 1), (2, 1)])
def test_example_of_one_row_or_one_token_stays_dynamic(size):
    model, _ = distilbert()
    gm = capture(model, encoder_inputs(*size))
    given = encoder_inputs(3, 9)
    with torch.no_grad():
        assert torch.equal(gm(**given)[0], model(**given)[0])


def test_example_as_given_where_the_widened_one_fails():
    class OneRow(nn.Module):
        def forward(self, x):
            if x.shape[0] != 1:
                raise ValueError("one row only")
            return x * 2

    with pytest.warns(FxQuantWarning, match=r"dimension 0 \(batch\) of 'x' became fixed at 1"):
        gm = capture(OneRow(), torch.ones(1, 3))
    assert torch.equal(gm(torch.ones(1, 5)), torch.full((1, 5), 2.0))


def test_example_as_given_where_the_widened_size_would_stick():
    class Halves(nn.Module):
        def forward(self, x):
            return x.view(2, -1)

    with pytest.warns(FxQuantWarning, match="fixed at 1"):
        gm = capture(Halves(), torch.ones(1, 4))
    assert gm(torch.ones(1, 6)).shape == (2, 3)


def test_sequence_that_became_fixed_is_reported_and_checked():
    model = nn.LSTM(4, 8, batch_first=True)
    with pytest.warns(FxQuantWarning, match=r"dimension 1 \(sequence\) of 'input' became fixed at 5") as record:
        gm = capture(model, torch.randn(2, 5, 4))
    assert record[0].filename == __file__
    given = torch.randn(3, 5, 4)
    output, (hidden, _) = gm(given)
    with torch.no_grad():
        assert torch.equal(output, model(given)[0]) and torch.equal(hidden, model(given)[1][0])
    with pytest.raises(InputError, match="dimension 1 of 'input' has size 6, and was captured with the fixed size 5"):
        gm(torch.randn(2, 6, 4))


def test_static_capture_fixes_every_size_silently():
    model, inputs = distilbert()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = capture(model, inputs, dynamic=False)
    assert [leaf.shape for leaf in signature_of(gm).leaves] == [(2, 12), (2, 12)]
    with pytest.raises(InputError, match="dimension 0 of 'input_ids' has size 3"):
        gm(**encoder_inputs(3, 12))


def test_branch_on_a_size_is_checked_at_each_call():
    class Even(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[1] % 2 == 0 else x

    gm = capture(Even(), torch.ones(2, 4))
    assert torch.equal(gm(torch.ones(2, 6)), torch.full((2, 6), 2.0))
    with pytest.raises(InputError, match=r"right where \(x.shape\[1\] % 2\) == 0"):
        gm(torch.ones(2, 5))


def test_constants_and_outputs_that_are_no_tensors():
    model, inputs = roberta()
    gm = capture(model, {**inputs, "output_hidden_states": True, "token_type_ids": None})
    found, expected = gm(**inputs), model(**inputs, output_hidden_states=True)
    assert len(found.hidden_states) == 2
    assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
    with pytest.raises(InputError, match="'output_hidden_states' is False, and was captured as True"):
        gm(**inputs, output_hidden_states=False)
    with pytest.raises(InputError, match="argument 'token_type_ids' is a Tensor, and was captured as None"):
        gm(**inputs, token_type_ids=torch.zeros(2, 12, dtype=torch.long))


def test_output_with_sizes_and_constants():
    class Facts(nn.Module):
        def forward(self, x):
            return {"rows": x.shape[0], "twice": (x * 2, x), "name": "facts", "none": None}

    found = capture(Facts(), torch.ones(3, 2))(torch.zeros(5, 2))
    assert (found["rows"], found["name"], found["none"]) == (5, "facts", None)
    assert torch.equal(found["twice"][0], torch.zeros(5, 2))


def test_tied_parameters_are_one_tensor_of_one_name():
    model, _, gm = captured("bert-masked-lm")
    pointer = model.get_output_embeddings().weight.data_ptr()
    same = [name for name, tensor in gm.named_parameters(remove_duplicate=False) if tensor.data_ptr() == pointer]
    assert same == ["bert.embeddings.word_embeddings.weight"]
    readers = gm.graph.find_nodes(op="get_attr", target=same[0])
    assert {str(user.target) for node in readers for user in node.users} == {
        "aten.embedding.default",
        "aten.linear.default",
    }


def test_module_called_twice_has_its_own_path():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(self.inner(x))

    gm = capture(Twice(), torch.ones(2, 4))
    nodes = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert [edit.path_of(node) for node in nodes] == ["inner", "inner"]
    assert len({tuple(node.meta["nn_module_stack"]) for node in nodes}) == 2


def test_model_is_left_as_it_was():
    model, inputs = t5()
    model.train()
    model.encoder.block[0].eval()
    flags = [module.training for module in model.modules()]
    caches = [model.config.use_cache, model.decoder.config.use_cache]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gm = capture(model, inputs)
    assert [module.training for module in model.modules()] == flags
    assert [model.config.use_cache, model.decoder.config.use_cache] == caches and caches[0] is True
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(node.args[-1] is True for node in gm.graph.nodes if "dropout" in str(node.target))


def test_config_is_kept_as_data():
    config = edit.marks(captured("bert")[2])["config"]
    assert (config["architectures"], config["hidden_size"], config["model_type"]) == (["BertModel"], 32, "bert")
    assert "_name_or_path" not in config
    assert "config" not in edit.marks(captured("mlp")[2])


class Attention(nn.Module):
    """Can be exported with eager attention only."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, x):
        if self.config._attn_implementation == "sdpa" and x.sum() > 1e9:
            return x
        return x + 1


def test_eager_attention_is_tried_second():
    model = Attention()
    gm = capture(model, torch.zeros(2, 3))
    assert torch.equal(gm(torch.zeros(4, 3)), torch.ones(4, 3))
    assert model.config._attn_implementation == "sdpa"
    record = edit.marks(gm)["capture"]
    assert record["rung"] == "eager attention"
    (above,) = record["failed"]
    assert above["rung"] == "own attention"
    assert above["reason"].startswith("GuardOnDataDependentSymNode") and "at test_capture.py:" in above["reason"]


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_failure_names_module_line_and_what_to_try(capfd, caplog):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Branch()))
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.ones(2, 3))
    text = str(caught.value)
    line = Branch.forward.__code__.co_firstlineno + 1
    assert f"in module '1.1' (Branch) at test_capture.py:{line}: GuardOnDataDependentSymNode" in text
    assert "dynamic=False" in text and "capture the submodules" in text and "\n" not in text
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    capture(model[0], torch.ones(2, 3))  # what the text proposes


def test_model_that_fails_on_the_example_is_told_apart():
    with pytest.raises(
        InputError, match=r"the model itself fails on example_inputs in module 'up' \(Linear\) at models.py"
    ):
        capture(mlp()[0], torch.ones(2, 5))


def test_forward_that_changes_a_buffer_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm1d(3)

        def forward(self, x):
            self.inner.running_mean[:1].add_(1)
            return self.inner(x)

    with pytest.raises(CaptureError, match=r"forward changes 'inner.running_mean', a tensor of the model"):
        capture(Counter(), torch.ones(2, 3))


def test_output_of_an_unknown_type_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"x": {x}}

    with pytest.raises(CaptureError, match=r"the model's output\['x'\] is a builtins.set; expected a tensor"):
        capture(Odd(), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.half(), "parameter 'up.weight' is torch.float16, not torch.float32: convert with model.float()"),
        (lambda m: m.down.bias.data.fill_(math.nan), "parameter 'down.bias' contains NaN or infinity"),
        (lambda m: m.up.weight.data[3, 3:4].fill_(math.inf), "parameter 'up.weight' contains NaN or infinity"),
        (lambda m: m.register_buffer("mask", torch.tensor(math.nan)), "buffer 'mask' contains NaN"),
        (lambda m: m.to("meta"), "parameter 'up.weight' is on the meta device"),
    ],
    ids=["half", "nan", "inf", "nan buffer", "meta"],
)
def test_damaged_model_is_named(change, text):
    model, inputs = mlp()
    change(model)
    with pytest.raises(CaptureError) as caught:
        capture(model, inputs)
    assert text in str(caught.value)


def test_buffer_of_minus_infinity_is_a_mask():
    model, inputs = mlp()
    model.register_buffer("mask", torch.tensor(-math.inf))
    capture(model, inputs)


def test_no_module_is_refused():
    with pytest.raises(CaptureError, match=r"capture takes a torch.nn.Module, not a function"):
        capture(lambda x: x, torch.ones(1))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "example_inputs lacks 'x': forward(x) needs it"),
        ((), "example_inputs lacks 'x'"),
        ({"x": 1}, "example_inputs holds no tensor"),
        ({"x": [[1.0, 2.0]]}, 'lists of them are constants, and a tokenizer makes tensors with return_tensors="pt"'),
        ({"x": torch.ones(2, 16), "y": 1}, "example_inputs has 'y', which forward does not take"),
        ((torch.ones(2, 16), 1), "2 positional arguments were given, but forward takes 1"),
        ({"x": torch.ones(0, 16)}, "'x' has shape (0, 16), which is empty"),
        ({"x": torch.ones(2, 16, requires_grad=True)}, "'x' requires grad: give x.detach()"),
        ({"x": torch.full((2, 16), math.nan)}, "'x' contains NaN"),
        ({"x": {1, 2}}, "example_inputs['x'] is a builtins.set; expected a tensor"),
        ("x", "example_inputs is a str: expected a dict"),
        (None, "example_inputs is a NoneType: expected a dict"),
    ],
    ids=str,
)
def test_wrong_example_is_named(given, text):
    with pytest.raises(InputError) as caught:
        capture(mlp()[0], given)
    assert text in str(caught.value)


def test_misspelt_keyword_is_found_behind_typed_kwargs():
    model, inputs = bert()
    with pytest.raises(
        InputError, match="'attention_masks', which forward does not take; did you mean 'attention_mask'"
    ):
        capture(model, {"input_ids": inputs["input_ids"], "attention_masks": inputs["attention_mask"]})


def test_tokenizer_like_mappings_and_their_order_do_not_matter():
    from collections import UserDict

    model, inputs = distilbert()
    gm = capture(model, UserDict(reversed(inputs.items())))
    assert [leaf.name for leaf in signature_of(gm).leaves] == ["input_ids", "attention_mask"]
    assert torch.equal(gm(**inputs)[0], model(**inputs)[0])


def test_one_tensor_for_two_arguments():
    class Add(nn.Module):
        def forward(self, a, b):
            return a + 2 * b

    one = torch.ones(2, 3)
    gm = capture(Add(), {"a": one, "b": one})
    assert torch.equal(gm(one, one * 2), torch.full((2, 3), 5.0))


def test_captured_graph_can_be_captured_again():
    model, inputs, gm = captured("distilbert")
    again = capture(gm, inputs)
    given = encoder_inputs(3, 5)
    with torch.no_grad():
        assert torch.equal(again(**given)[0], model(**given)[0])
