"""An artifact on every device that the kernels of the known backends can run on here.

Each integer product runs on the kernel that a backend gives it, with the artifact's weights and with inputs that its
Q/DQ graph computed; every sum is held against the same sum in float64, which is exact. The whole graph runs too, as the
backend fuses it, and its outputs are compared in float.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.backends import Backend, known_backends, load_backend
from fxquant.errors import ConfigError, first_line
from fxquant.evaluation.layers import run_layers
from fxquant.graph import edit
from fxquant.kernels.devices import CPU, Device
from fxquant.numerics import sqnr
from fxquant.passes.annotate import Annotate
from fxquant.passes.base import Pipeline
from fxquant.passes.claims import computed_ops
from fxquant.passes.lower import Lower
from fxquant.passes.lowering import listed_passes
from fxquant.program import Program
from fxquant.verification.certificate import Certificate, DeviceRow, ProductRow
from fxquant.verification.inputs import generated_inputs
from fxquant.verification.products import LARGEST, Product, Sums, products
from fxquant.verification.whole import converted_graphs, devices_of, lowered_on, on

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class _Exact:
    """A product with inputs, its exact sums (float64) and the step that a float32 result has to be divided by."""

    product: Product
    inputs: tuple[Tensor, ...]
    sums: Tensor
    step: Tensor
    quantized: Tensor | None


@dataclass(frozen=True)
class _Graph:
    """A Q/DQ graph with inputs, what it gives for them, and its products."""

    gm: fx.GraphModule
    inputs: tuple[Tensor, ...]
    outputs: Sequence[object]
    exact: tuple[_Exact, ...]
    left_out: tuple[str, ...]


def certify(graph: fx.GraphModule | Program, backends: Iterable[str] | None = None) -> Certificate:
    """Run the integer products of a converted or lowered graph on every device, and compare integer by integer.

    Args:
        graph: a graph or Program; of a Program each graph by itself.
        backends: names or paths of backend files; by default all that are known.

    Raises:
        FxQuantError: the graph is not converted yet, or does not run.
        ConfigError: one of the `backends` is not known.
    """
    graphs = converted_graphs(graph).values()
    with torch.no_grad():
        references = [_reference(gm) for gm in graphs]
        rows = [row for name in known_backends() if backends is None for row in _rows_or_why(name, references)]
        rows += [row for name in backends or () for row in _rows(load_backend(name), references)]
    return Certificate(tuple(rows), tuple(text for each in references for text in each.left_out))


def _reference(gm: fx.GraphModule) -> _Graph:
    found = list(products(gm))
    inputs = generated_inputs(gm)
    isolated = [each for each in found if isinstance(each, Product)]
    values = run_layers(gm, {name for each in isolated for name in each.inputs}, inputs)
    exact = tuple(_exact(each, tuple(values.by_node[name] for name in each.inputs)) for each in isolated)
    return _Graph(gm, inputs, values.outputs, exact, tuple(each for each in found if isinstance(each, str)))


def _exact(product: Product, inputs: tuple[Tensor, ...]) -> _Exact:
    sums = Sums(product)
    found = sums.of(inputs)
    return _Exact(product, inputs, found, sums.step, sums.quantized)


def _rows_or_why(name: str, references: Sequence[_Graph]) -> Iterator[DeviceRow]:
    """Yield the rows of a backend that nobody named: one that cannot be loaded is a row, and no error."""
    try:
        yield from _rows(load_backend(name), references)
    except ConfigError as error:
        yield DeviceRow(backend=name, device="", missing=str(error))


def _rows(backend: Backend, references: Sequence[_Graph]) -> Iterator[DeviceRow]:
    for device in devices_of(backend):
        if device.missing is not None:
            yield DeviceRow(backend=backend.name, device=device.name, missing=device.missing)
            continue
        compared = tuple(_compared(backend, device, each) for graph in references for each in graph.exact)
        outputs, remarks = _outputs(backend, device, references) if device.graphs else (None, ())
        yield DeviceRow(backend=backend.name, device=device.name, products=compared, outputs=outputs, remarks=remarks)


def _compared(backend: Backend, device: Device, exact: _Exact) -> ProductRow:
    product = exact.product
    try:
        kernel, found, expected = _multiplied(device, exact) if device.multiply else _ran(backend, device, exact)
    except Exception as error:  # whatever a foreign kernel raises
        text = f"{type(error).__name__}: {first_line(error)}"
        return ProductRow(op=product.op, path=product.path, failed=True, reason=text)
    if found is None:
        return ProductRow(op=product.op, path=product.path, reason=kernel)
    certain = expected.abs() <= LARGEST
    return ProductRow(
        op=product.op,
        path=product.path,
        kernel=kernel,
        integers=int(certain.sum()),
        different=int((certain & (found != expected)).sum()),
    )


def _ran(backend: Backend, device: Device, exact: _Exact) -> tuple[str, Tensor | None, Tensor]:
    """Return the kernel, the sums that it gave, and the exact ones; or why there is no kernel, and None."""
    with device.entered():
        lowered = on(device, exact.product.graph)
        listed = listed_passes(backend.passes, backend.source)
        Pipeline((Annotate(backend, None), Lower(backend), *listed)).run(lowered)
        kernel = _kernel(lowered)
        if kernel is None:
            return _reason(lowered), None, exact.sums
        inputs = tuple(each.to(device.place) for each in exact.inputs)
        result = run_layers(lowered, set(), inputs).outputs[0]
    assert isinstance(result, Tensor)
    return kernel, (result.to(CPU, torch.float64) / exact.step).round(), exact.sums


def _multiplied(device: Device, exact: _Exact) -> tuple[str, Tensor | None, Tensor]:
    """Return the same for a device that multiplies integers and does nothing else: Σ q_x·q_w, without zero points."""
    q, weight = exact.quantized, exact.product.weight
    if exact.product.core.target is not LINEAR or q is None or weight is None or device.multiply is None:
        return "this device multiplies matrices alone", None, exact.sums
    rows = q.reshape(-1, q.shape[-1])
    expected = rows.double() @ weight.double().t()
    return device.name, device.multiply(rows.contiguous(), weight.contiguous()).double(), expected


def _outputs(backend: Backend, device: Device, references: Sequence[_Graph]) -> tuple[float | None, tuple[str, ...]]:
    """Return the SQNR of the worst output of whole graphs, and why a graph does not run as a whole."""
    worst = float("inf")
    for each in references:
        try:
            back = lowered_on(device, each.gm, backend)(each.inputs)
        except Exception as error:  # whatever a foreign kernel raises
            return None, (f"the whole graph does not run: {type(error).__name__}: {first_line(error)}",)
        for left, right in zip(each.outputs, back, strict=True):
            if isinstance(left, Tensor) and isinstance(right, Tensor) and left.is_floating_point():
                worst = min(worst, sqnr(left, right))
    return worst, ()


def _kernel(lowered: fx.GraphModule) -> str | None:
    """Return the operator that computes the product, None where it stayed in its Q/DQ form."""
    for node in lowered.graph.nodes:
        for facts in computed_ops(node):
            if "lowered" in facts:
                return str(node.target).removesuffix(".default")
    return None


def _reason(lowered: fx.GraphModule) -> str:
    """Return why a product has no kernel; it is the last call of its graph."""
    facts = edit.marks(next(node for node in reversed(lowered.graph.nodes) if node.op == "call_function"))
    return str(facts.get("fallback") or facts.get("reason", {}).get("text") or "its rule names no kernel")
