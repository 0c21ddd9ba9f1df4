"""Graph edits: copies are apart but share tensors, names never clash, edges keep their places, sweeps leave nothing."""

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.text import to_text

aten = torch.ops.aten


def two_linears():
    """Return linear(relu(linear(x))) as a graph by hand."""
    root = nn.Module()
    root.body = nn.Module()
    root.body.up, root.body.down = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight, bias = graph.get_attr("body.up.weight"), graph.get_attr("body.up.bias")
    hidden = graph.call_function(aten.relu.default, (graph.call_function(aten.linear.default, (x, weight, bias)),))
    down = graph.get_attr("body.down.weight")
    graph.output((graph.call_function(aten.linear.default, (hidden, down), {"bias": None}),))
    return fx.GraphModule(root, graph)


def node_of(gm, target, which=0):
    return [node for node in gm.graph.nodes if node.target is target][which]


# ---------------------------------------------------------------------------------------------------------- facts


def test_marks_are_replaced_never_changed_in_place():
    gm = two_linears()
    node = node_of(gm, aten.relu.default)
    edit.mark(node, path="body", rule="relu")
    first = edit.marks(node)
    edit.mark(node, rule=None, reason="none")
    assert first == {"path": "body", "rule": "relu"}
    assert edit.marks(node) == {"path": "body", "reason": "none"}


def test_a_graph_has_marks_too():
    gm = two_linears()
    assert edit.marks(gm) == {}
    edit.mark(gm, recipe="dynamic")
    assert gm.meta[edit.KEY] == {"recipe": "dynamic"}


def test_path_is_empty_for_the_model_itself():
    node = node_of(two_linears(), aten.relu.default)
    assert edit.path_of(node) == ""
    edit.mark(node, path="body.up")
    assert edit.path_of(node) == "body.up"


def test_info_of_fixed_and_dynamic_sizes():
    auto = torch.export.Dim.AUTO
    model, inputs = nn.Linear(4, 8), (torch.ones(3, 5, 4),)
    gm = torch.export.export(model, inputs, dynamic_shapes={"input": {0: auto, 1: auto}}, strict=False).graph_module
    assert edit.info(node_of(gm, aten.linear.default)) == edit.TensorInfo(torch.float32, (3, 5, 8), (True, True, False))


def test_info_falls_back_on_the_stored_value_and_is_none_without():
    node = node_of(two_linears(), aten.relu.default)
    assert edit.info(node) is None
    known = edit.TensorInfo(torch.bool, (2, 3), (True, False))
    edit.mark(node, value=known.to_dict())
    assert edit.info(node) == known
    node.meta["val"] = torch.ones(1, dtype=torch.int32)
    assert edit.info(node) == edit.TensorInfo(torch.int32, (1,), (False,))


def test_info_of_a_node_with_several_results_is_none():
    class Split(nn.Module):
        def forward(self, x):
            return x.split(2)[0]

    gm = torch.export.export(Split(), (torch.ones(4, 2),), strict=False).graph_module
    assert edit.info(node_of(gm, aten.split.Tensor)) is None


@given(
    st.sampled_from([torch.float32, torch.float16, torch.int8, torch.bool, torch.int64]),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4),
)
def test_info_survives_json(dtype, sizes):
    known = edit.TensorInfo(dtype, tuple(size for size, _ in sizes), tuple(dynamic for _, dynamic in sizes))
    assert edit.TensorInfo.from_dict(known.to_dict()) == known


# ---------------------------------------------------------------------------------------------------------- clone


def test_a_clone_is_edited_apart():
    gm = two_linears()
    text = to_text(gm)
    copy = edit.clone(gm)
    assert to_text(copy) == text
    node_of(copy, aten.relu.default).target = aten.gelu.default
    edit.mark(node_of(copy, aten.gelu.default), rule="gelu")
    edit.mark(copy, recipe="static")
    edit.add_constant(copy, "body.extra", torch.ones(1), before=next(iter(copy.graph.nodes)))
    assert to_text(gm) == text
    assert edit.marks(gm) == {}
    assert not hasattr(gm.body, "extra")


def test_a_clone_shares_its_tensors():
    gm = two_linears()
    copy = edit.clone(gm)
    assert copy.body.up.weight is gm.body.up.weight
    assert copy.body is not gm.body


def test_a_clone_loses_a_tensor_alone():
    gm = two_linears()
    copy = edit.clone(gm)
    del copy.body.up.weight
    assert isinstance(gm.body.up.weight, torch.Tensor)


def test_a_clone_keeps_facts_signature_and_mode():
    model, inputs = models.mlp()
    gm = capture(model, inputs)
    edit.mark(gm, recipe="dynamic")
    copy = edit.clone(gm)
    assert edit.marks(copy) == edit.marks(gm)
    assert not copy.training
    assert copy.graph._codegen is gm.graph._codegen
    torch.testing.assert_close(copy(**inputs), gm(**inputs), rtol=0, atol=0)
    before, after = list(gm.graph.nodes), list(copy.graph.nodes)
    assert [node.meta.get("val") is None for node in before] == [node.meta.get("val") is None for node in after]
    assert [edit.marks(node) for node in before] == [edit.marks(node) for node in after]


# ------------------------------------------------------------------------------------------------------ constants


def test_a_constant_is_found_again():
    gm = two_linears()
    linear = node_of(gm, aten.linear.default)
    value = torch.arange(8.0, requires_grad=True)
    node = edit.add_constant(gm, "body.up.shift", value, before=linear)
    assert node.target == "body.up.shift"
    assert node.next is linear
    assert edit.path_of(node) == "body.up"
    assert edit.info(node) == edit.TensorInfo(torch.float32, (8,), (False,))
    assert edit.is_constant(node) and not edit.is_constant(linear) and not edit.is_constant(3)
    stored = edit.get_tensor(gm, node)
    assert stored.data_ptr() == value.data_ptr()
    assert not stored.requires_grad and "body.up.shift" in dict(gm.named_buffers())


def test_names_of_constants_never_clash():
    gm = two_linears()
    first = next(iter(gm.graph.nodes))
    targets = [edit.add_constant(gm, wanted, torch.ones(1), before=first).target for wanted in ["scale"] * 3]
    assert targets == ["scale", "scale_1", "scale_2"]
    assert edit.free_target(gm, "body.up.weight") == "body.up.weight_1"
    assert edit.free_target(gm, "body.up") == "body.up_1"
    assert edit.free_target(gm, "fresh.weight") == "fresh.weight"
    assert edit.free_target(gm, "forward") == "forward_1"


def test_a_constant_at_a_new_path_makes_the_modules_on_the_way():
    gm = two_linears()
    edit.set_tensor(gm, "a.b.c", torch.ones(2))
    edit.set_tensor(gm, "a.b.d", torch.zeros(2))
    assert gm.a.b.c.tolist() == [1, 1] and gm.a.b.d.tolist() == [0, 0]


def test_a_tensor_takes_the_place_of_a_parameter():
    gm = two_linears()
    edit.set_tensor(gm, "body.up.weight", torch.ones(8, 4, dtype=torch.int8))
    assert gm.body.up.weight.dtype == torch.int8
    assert "body.up.weight" not in dict(gm.named_parameters())


# -------------------------------------------------------------------------------------------------------- editing


def test_a_call_takes_the_path_it_is_like():
    gm = two_linears()
    relu = node_of(gm, aten.relu.default)
    relu.meta["nn_module_stack"] = {"body": ("body", nn.Module)}
    edit.mark(relu, path="body", rule="relu")
    known = edit.TensorInfo(torch.float32, (2, 8), (True, False))
    with gm.graph.inserting_after(relu):
        node = edit.call(gm.graph, aten.clamp.default, (relu, 0), like=relu, value=known, max=6)
    assert (node.args, node.kwargs) == ((relu, 0), {"max": 6})
    assert edit.path_of(node) == "body" and edit.info(node) == known
    assert "rule" not in edit.marks(node), "what was decided of a node is not true of another"
    assert node.meta["nn_module_stack"] == relu.meta["nn_module_stack"]


def test_arguments_count_through_keywords():
    gm = two_linears()
    linear, relu = node_of(gm, aten.linear.default, 1), node_of(gm, aten.relu.default)
    assert edit.arguments(linear) == [*linear.args, None]
    edit.set_argument(linear, 0, relu.args[0])
    edit.set_argument(linear, 2, relu)
    assert linear.args[0] is relu.args[0] and linear.kwargs == {"bias": relu}
    assert list(relu.users) == [linear]


def test_setting_an_argument_beyond_the_last_fails():
    with pytest.raises(IndexError):
        edit.set_argument(node_of(two_linears(), aten.linear.default, 1), 3, None)


def test_replace_moves_every_user():
    gm = two_linears()
    relu = node_of(gm, aten.relu.default)
    source = relu.args[0]
    edit.replace(relu, source)
    assert relu not in list(gm.graph.nodes)
    assert node_of(gm, aten.linear.default, 1).args[0] is source


def test_sweep_erases_what_nothing_reads():
    gm = two_linears()
    gm.spare = nn.Linear(2, 2)
    gm.register_buffer("table", torch.ones(3))
    gm.body.up.register_buffer("twin", gm.body.up.weight.detach())
    relu = node_of(gm, aten.relu.default)
    node_of(gm, aten.linear.default, 1).args = (relu.args[0], node_of(gm, aten.linear.default, 1).args[1])
    edit.sweep(gm)
    assert set(gm.state_dict()) == {"body.up.weight", "body.up.bias", "body.down.weight"}
    assert relu not in list(gm.graph.nodes) and not hasattr(gm, "spare")
    gm.graph.lint()


def test_sweep_keeps_inputs_and_what_called_modules_hold():
    root = nn.Module()
    root.observer, root.other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("unused")
    graph.output(graph.call_module("observer", (x,)))
    gm = fx.GraphModule(root, graph)
    gm.add_module("observer_2", nn.BatchNorm1d(4))
    edit.sweep(gm)
    assert {name.partition(".")[0] for name in gm.state_dict()} == {"observer"}
    assert [node.op for node in gm.graph.nodes] == ["placeholder", "placeholder", "call_module", "output"]


def test_sweep_leaves_the_original_of_a_clone_whole():
    gm = two_linears()
    copy = edit.clone(gm)
    edit.replace(node_of(copy, aten.linear.default), next(node for node in copy.graph.nodes if node.target == "x"))
    edit.sweep(copy)
    assert "body.up.weight" not in copy.state_dict()
    assert set(gm.state_dict()) == {"body.up.weight", "body.up.bias", "body.down.weight"}


# ---------------------------------------------------------------------------------------------------------- order


def names(gm):
    return [node.name for node in gm.graph.nodes]


def test_sorting_an_ordered_graph_changes_nothing():
    gm = two_linears()
    before = names(gm)
    edit.sort(gm)
    assert names(gm) == before


def test_sorting_moves_only_what_stands_before_its_inputs():
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(aten.relu.default, (x,), name="first")
    early = graph.call_function(aten.neg.default, (x,), name="early")
    after_early = graph.call_function(aten.abs.default, (early,), name="after_early")
    between = graph.call_function(aten.sign.default, (first,), name="between")
    late = graph.call_function(aten.exp.default, (between,), name="late")
    graph.output((after_early, late))
    early.update_arg(0, late)
    gm = fx.GraphModule(nn.Module(), graph)
    edit.sort(gm)
    assert names(gm) == ["x", "first", "between", "late", "early", "after_early", "output"]
    gm.graph.lint()
    gm.recompile()
    value = torch.tensor([0.3, -2.0])
    expected = value.relu().sign().exp()
    assert all(torch.equal(y, wanted) for y, wanted in zip(gm(value), ((-expected).abs(), expected), strict=True))


@given(st.integers(0, 2**32 - 1))
def test_sorting_any_order_gives_a_sound_one(seed):
    generator = torch.Generator().manual_seed(seed)

    def below(count):
        return int(torch.randint(0, count, (), generator=generator))

    graph = fx.Graph()
    nodes = [graph.placeholder("x"), graph.placeholder("y")]
    for _ in range(12):
        nodes.append(graph.call_function(aten.add.Tensor, (nodes[below(len(nodes))], nodes[below(len(nodes))])))
    last = graph.output(tuple(nodes[-3:]))
    gm = fx.GraphModule(nn.Module(), graph)
    inputs = (torch.tensor(1.0), torch.tensor(2.0))
    expected = gm(*inputs)
    for _ in range(6):
        moved = nodes[2 + below(12)]
        last.prepend(moved) if below(2) else nodes[1].append(moved)
    edit.sort(gm)
    gm.graph.lint()
    gm.recompile()
    assert all(torch.equal(a, b) for a, b in zip(gm(*inputs), expected, strict=True))
