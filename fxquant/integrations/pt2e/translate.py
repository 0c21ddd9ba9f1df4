"""The operators of `quantized_decomposed` become those of fxquant: the pass by which a foreign graph is taken in."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.errors import CaptureError
from fxquant.graph import edit
from fxquant.integrations.pt2e import affine, schemes
from fxquant.integrations.pt2e.operators import called, named_arguments
from fxquant.integrations.pt2e.schemes import Scheme
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE, insert_choice, store_integers
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class FromDecomposed:
    """Replace each quantize, dequantize and choose_qparams; constants that are quantized in the graph are made once.

    The scheme of each is read off its arguments and, for a constant, off its integers. To a step of the quantized
    values the numbers stay: `quantized_decomposed` multiplies by 1/S where fxquant divides by S, and never chooses a
    scale below a limit of its own at run time.
    """

    name: ClassVar[str] = "from_decomposed"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many operators were replaced.

        Raises:
            CaptureError: an operator, or a scheme, that fxquant has no form for; names the node.
        """
        work = _Translation(gm)
        nodes = [node for node in gm.graph.nodes if called(node) is not None]
        for node in nodes:
            try:
                work.replace(node)
            except CaptureError as error:
                raise CaptureError(f"%{node.name} ({node.target}) cannot be taken in: {error}") from None
        edit.sweep(gm)
        return len(nodes)


@dataclass
class _Translation:
    """One run: `chosen` maps what a choose_qparams gave to what it is now, `made` holds what equal calls share."""

    gm: fx.GraphModule
    chosen: dict[fx.Node, tuple[fx.Node, QuantSpec]] = field(default_factory=dict)
    made: dict[Any, fx.Node] = field(default_factory=dict)

    def replace(self, node: fx.Node) -> None:
        """Replace one call of the dialect."""
        name, given = called(node), named_arguments(node)
        assert name is not None, "checked by the caller"
        if name.startswith("choose_qparams"):
            self._choose(node, name, given)
        elif name.startswith("quantize_"):
            edit.replace(node, self._quantize(node, given["input"], schemes.read(self.gm, given)))
        elif name.startswith("dequantize_"):
            source = given["input"] if "input" in given else given["w_int8"]
            edit.replace(node, self._dequantize(node, source, schemes.read(self.gm, given)))
        else:
            raise CaptureError("fxquant has no such operator; keep this op in float when you quantize")

    def _choose(self, node: fx.Node, name: str, given: dict[str, Any]) -> None:
        spec = affine.chosen_spec(given) if name == affine.CHOOSE else schemes.dynamic_spec(name, given)
        both = insert_choice(given["input"], spec, node)
        for user in node.users:
            place: Any = user.args[1]
            assert user.target is operator.getitem, "an operator with two results is read by getitem"
            self.chosen[user] = both[place], spec

    def _quantize(self, node: fx.Node, source: fx.Node, scheme: Scheme) -> fx.Node:
        if edit.is_constant(source):
            key = (source, scheme)
            return self._once(key, lambda: self._integers(source, scheme))
        args = (source, *self._qparams(node, scheme), scheme.axis, scheme.qmin, scheme.qmax, scheme.dtype)
        return self._call(node, QUANTIZE, args, self._spec(scheme))

    def _dequantize(self, node: fx.Node, source: fx.Node, scheme: Scheme) -> fx.Node:
        scale, zero_point = self._qparams(node, scheme)
        if not edit.is_constant(source):
            return self._call(node, DEQUANTIZE, (source, scale, zero_point, scheme.axis), self._spec(scheme))
        stored = edit.get_tensor(self.gm, source)
        spec = schemes.constant_spec(scheme, stored, edit.get_tensor(self.gm, zero_point))
        if spec.format.packed and stored.ndim:
            name, place = str(source.target), self._body()
            source = self._once(
                (source, "packed"), lambda: store_integers(self.gm, f"{name}_{spec.dtype}", stored, spec, place)
            )
        if spec.group_size is not None:
            return self._call(node, DEQUANTIZE_GROUPS, (source, scale, zero_point, spec.group_size), spec)
        return self._call(node, DEQUANTIZE, (source, scale, zero_point, scheme.axis), spec)

    def _integers(self, source: fx.Node, scheme: Scheme) -> fx.Node:
        found = schemes.integers(self.gm, edit.get_tensor(self.gm, source), scheme)
        name = f"{source.target}_{str(found.dtype).removeprefix('torch.')}"
        return edit.add_constant(self.gm, name, found, self._body())

    def _qparams(self, node: fx.Node, scheme: Scheme) -> tuple[fx.Node, fx.Node]:
        """Return nodes of a scale, float32, and of a zero point, int32."""
        if scheme.dynamic:
            return self._chosen(scheme.scale)[0], self._chosen(scheme.zero_point)[0]
        return (
            self._fixed(node, scheme.scale, scheme, torch.float32),
            self._fixed(node, scheme.zero_point, scheme, torch.int32),
        )

    def _fixed(self, node: fx.Node, value: float | fx.Node, scheme: Scheme, dtype: torch.dtype) -> fx.Node:
        def make() -> fx.Node:
            tensor = schemes.fixed(self.gm, value, scheme, dtype)
            wanted = str(value.target) if isinstance(value, fx.Node) else f"qparams.{node.name}_{kind}"
            return edit.add_constant(self.gm, wanted, tensor, self._body())

        kind = "scale" if dtype.is_floating_point else "zero_point"
        return self._once((kind, value, scheme.axis is None and scheme.group_size is None), make)

    def _spec(self, scheme: Scheme) -> QuantSpec:
        return self._chosen(scheme.scale)[1] if scheme.dynamic else schemes.static_spec(scheme)

    def _chosen(self, value: float | fx.Node) -> tuple[fx.Node, QuantSpec]:
        if not isinstance(value, fx.Node) or value not in self.chosen:
            raise CaptureError(f"its scale and zero point, {value}, are neither constants nor from one choose_qparams")
        return self.chosen[value]

    def _body(self) -> fx.Node:
        """Return the first node of the graph, before which constants are put."""
        first: fx.Node = next(iter(self.gm.graph.nodes))
        return first

    def _once(self, key: Any, make: Callable[[], fx.Node]) -> fx.Node:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _call(self, node: fx.Node, target: Any, args: tuple[Any, ...], spec: QuantSpec) -> fx.Node:
        """Return a call in the place of `node`, or an equal one that stands before it."""

        def make() -> fx.Node:
            with self.gm.graph.inserting_before(node):
                new = edit.call(self.gm.graph, target, args, like=node, value=edit.info(node))
            edit.mark(new, spec=spec.to_dict())
            return new

        return self._once((target, *args), make)
