"""Records of what packed constants hold."""

import torch
from torch import fx, nn

from fxquant.graph import edit
from fxquant.kernels.layout import Source, join, packed_constants, record


def graph_of(*sizes):
    """Return a graph that reads one constant of each length, and their nodes."""
    gm = fx.GraphModule(nn.Module(), fx.Graph())
    output = gm.graph.output(())
    nodes = [edit.add_constant(gm, f"c{i}", torch.full((size, 2), i), output) for i, size in enumerate(sizes)]
    return gm, nodes


def test_a_constant_is_its_source():
    gm, (node,) = graph_of(3)
    record(gm, node, Source("weight", "some", (7, 8)))
    ((target, packed),) = packed_constants(gm)
    assert (target, packed.layout, packed.arguments) == ("weight", "some", (7, 8))
    assert packed.part.shape == (3, 2)


def test_joined_constants_have_the_parts_of_all():
    gm, (a, b, both) = graph_of(1, 2, 3)
    record(gm, a, Source("first", "some"))
    record(gm, b, Source("second", "other"))
    edit.set_tensor(gm, "c2", torch.cat([edit.get_tensor(gm, a), edit.get_tensor(gm, b)]))
    join(gm, [a, b], both)
    for node in (a, b):
        gm.graph.erase_node(node)
    found = dict(packed_constants(gm))
    assert {name: packed.part.tolist() for name, packed in found.items()} == {
        "first": [[0, 0]],
        "second": [[1, 1], [1, 1]],
    }
    assert found["second"].layout == "other"


def test_what_is_joined_with_something_unknown_is_unknown():
    gm, (a, b, both) = graph_of(1, 2, 3)
    record(gm, a, Source("first", "some"))
    join(gm, [a, b], both)
    gm.graph.erase_node(a)
    assert not list(packed_constants(gm))
