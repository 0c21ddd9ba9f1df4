"""Canonical float graph → Q/DQ graph with the integers of a checkpoint, in place of the weights that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.errors import DataError
from fxquant.graph import edit
from fxquant.graph.rebuild import tensor_key
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.passes.qdq_nodes import insert_dequantize, insert_dynamic, insert_quantize, store_integers, store_qparams

aten = torch.ops.aten
# Ops that read a weight, and where among their arguments it is.
READERS = {aten.linear.default: 1, aten.embedding.default: 0}
INDEX_SELECT = aten.index_select.default

Layers = Mapping[Any, tuple[str, Layer]]  # by `tensor_key` of the float weight: the module's path, and what it is


@dataclass(frozen=True)
class Adopt:
    """Replace float weights by integers behind a dequantize, and quantize the inputs of their linears.

    `adopted` collects the paths of the modules whose weights a graph read.
    """

    layers: Layers
    adopted: set[str] = field(default_factory=set, compare=False)
    name: ClassVar[str] = "adopt"
    after: ClassVar[tuple[str, ...]] = ("sweep",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many weights were replaced."""
        work = _Adoption(gm)
        count = 0
        for node in list(gm.graph.nodes):
            found = self.layers.get(tensor_key(edit.get_tensor(gm, node))) if edit.is_constant(node) else None
            if found is not None:
                path, layer = found
                work.adopt(node, path, layer)
                self.adopted.add(path)
                count += 1
        edit.sweep(gm)
        return count


@dataclass
class _Adoption:
    """One run of `Adopt`: what was put before the linears that read one value, so that it is there once."""

    gm: fx.GraphModule
    gathered: dict[fx.Node, list[tuple[Tensor, fx.Node]]] = field(default_factory=dict)
    dynamic: dict[Any, fx.Node] = field(default_factory=dict)

    def adopt(self, weight: fx.Node, path: str, layer: Layer) -> None:
        """Let the readers of a weight read a layer's integers."""
        readers = list(weight.users)
        for user in readers:
            if user.target not in READERS or user.args.index(weight) != READERS[user.target]:
                raise DataError(
                    f"{path} is quantized, and {user.target} reads its weight: expected a linear or embedding"
                )
        dequantized = self._store(weight, layer)
        for user in readers:
            user.replace_input_with(weight, dequantized)
            if user.target is aten.linear.default:
                edit.set_argument(user, 0, self._input(user, path, layer))

    def _store(self, weight: fx.Node, layer: Layer) -> fx.Node:
        name = f"{weight.target}_{layer.weight.dtype}"
        q = store_integers(self.gm, name, layer.integers, layer.weight, weight)
        scale, zero_point = store_qparams(self.gm, name, layer.qparams, weight)
        return insert_dequantize(q, scale, zero_point, layer.weight, layer.qparams.axis, weight)

    def _input(self, user: fx.Node, path: str, layer: Layer) -> fx.Node:
        """Return what a linear is to read: its input, gathered in the order of the integers, and quantized."""
        source: fx.Node = user.args[0]  # type: ignore[assignment]
        if layer.order is not None:
            source = self._gathered(source, path, layer.order)
        return source if layer.activation is None else self._quantized(source, user, path, layer)

    def _quantized(self, source: fx.Node, user: fx.Node, path: str, layer: Layer) -> fx.Node:
        spec, qparams = layer.activation, layer.activation_qparams
        assert spec is not None
        if qparams is None:
            if (source, spec) not in self.dynamic:
                self.dynamic[source, spec] = insert_dynamic(source, spec)
            return self.dynamic[source, spec]
        scale, zero_point = store_qparams(self.gm, f"qparams.{path}", qparams, user)
        return insert_quantize(source, scale, zero_point, spec, qparams.axis, zero_point)

    def _gathered(self, source: fx.Node, path: str, order: Tensor) -> fx.Node:
        known = self.gathered.setdefault(source, [])
        for other, node in known:
            if torch.equal(other, order):
                return node
        index = edit.add_constant(self.gm, f"{path}.order", order, source.next)
        with self.gm.graph.inserting_after(index):
            args = (source, -1, index)
            node = edit.call(self.gm.graph, INDEX_SELECT, args, like=source, value=edit.info(source))
        known.append((order, node))
        return node
