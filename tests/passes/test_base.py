"""A pipeline runs its passes in order, checks the order, and leaves a graph that is whole and compiled."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from fxquant.errors import ConfigError
from fxquant.passes.base import Pass, Pipeline

aten = torch.ops.aten


@dataclass(frozen=True)
class First:
    """Turn every relu into a gelu."""

    name: ClassVar[str] = "first"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm):
        found = [node for node in gm.graph.nodes if node.target is aten.relu.default]
        for node in found:
            node.target = aten.gelu.default
        return len(found)


@dataclass(frozen=True)
class Second:
    """Count gelus, `factor` times, as changes."""

    factor: int = 1
    name: ClassVar[str] = "second"
    after: ClassVar[tuple[str, ...]] = ("first",)

    def apply(self, gm):
        return self.factor * sum(node.target is aten.gelu.default for node in gm.graph.nodes)


@dataclass(frozen=True)
class Break:
    """Move the output to the front, which no graph survives."""

    name: ClassVar[str] = "break"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm):
        nodes = list(gm.graph.nodes)
        nodes[0].prepend(nodes[-1])
        return 1


def relu_graph():
    graph = fx.Graph()
    graph.output(graph.call_function(aten.relu.default, (graph.placeholder("x"),)))
    return fx.GraphModule(nn.Module(), graph)


def test_runs_in_order_and_recompiles():
    gm, x = relu_graph(), torch.tensor([-1.0, 2.0])
    assert Pipeline((First(), Second())).run(gm) is gm
    torch.testing.assert_close(gm(x), nn.functional.gelu(x), rtol=0, atol=0)


def test_order_is_checked():
    with pytest.raises(
        ConfigError, match=r"'second' must come after 'first'; the order given is \['second', 'first'\]"
    ):
        Pipeline((Second(), First()))


def test_a_pass_stands_once():
    with pytest.raises(ConfigError, match=r"'second' stands twice in the pipeline \['first', 'second', 'second'\]"):
        Pipeline((First(), Second(), Second(factor=2)))


def test_a_predecessor_may_be_absent():
    assert Pipeline((Second(),)).passes == (Second(),)


def test_watch_sees_the_graph_after_each_pass():
    seen = []
    Pipeline((First(), Second())).run(relu_graph(), watch=lambda name, gm: seen.append((name, gm.code.count("gelu"))))
    assert [name for name, _ in seen] == ["first", "second"]
    assert all(count > 0 for _, count in seen)


def test_a_broken_graph_is_caught_at_the_pass_that_broke_it():
    seen = []
    with pytest.raises(RuntimeError, match="before it has been defined"):
        Pipeline((First(), Break(), Second())).run(relu_graph(), watch=lambda name, gm: seen.append(name))
    assert seen == ["first"]


def test_a_graph_is_recompiled_once_and_without_changes_never(monkeypatch):
    gm = relu_graph()
    compiled = []
    monkeypatch.setattr(type(gm), "recompile", lambda self: compiled.append(self.code))
    Pipeline((Second(),)).run(gm)
    assert compiled == []
    Pipeline((First(), Second(factor=2))).run(gm)
    assert len(compiled) == 1


def test_counts_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="fxquant.passes"):
        Pipeline((First(), Second(factor=3))).run(relu_graph())
    assert [record.getMessage() for record in caplog.records] == ["first: 1 changes", "second: 3 changes"]


@pytest.mark.parametrize("each", [First(), Second(), Break()], ids=lambda each: each.name)
def test_a_frozen_dataclass_with_a_name_is_a_pass(each):
    assert isinstance(each, Pass)
    with pytest.raises(AttributeError):
        each.name = "other"


def test_what_has_no_apply_is_no_pass():
    assert not isinstance(object(), Pass)
