"""A Q/DQ graph as an ExecuTorch program, whose products XNNPACK runs on integers."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from fxquant.errors import ConfigError, ExportError, first_line
from fxquant.graph.modes import quiet_torch
from fxquant.graph.signature import signature_of
from fxquant.integrations.flat import Flat, flattened
from fxquant.integrations.packages import need
from fxquant.integrations.pt2e.outwards import PROFILES, dialect, exported
from fxquant.integrations.pt2e.products import CONVOLUTIONS, LINEAR, calls_of, has_integer_weight
from fxquant.integrations.substitutions import Written, substitutions

TARGETS = ("xnnpack",)
# The greatest sizes, of the first axis and of others, that memory is planned for where the model has no limit.
ROWS, LENGTH = 16, 512
# XNNPACK would take these over, and then fail on tensors with two sizes that vary.
_LEFT = ("UnsqueezeCopyConfig",)


def write_executorch(gm: fx.GraphModule, folder: Path, name: str, target: str | None) -> Written:
    """Write a converted graph as `name`.pte, and tell how many of its products XNNPACK runs on integers.

    Raises:
        ConfigError: an unknown target.
        MissingExtraError: ExecuTorch is not installed.
        ExportError: the target, or ExecuTorch, cannot express an op.
    """
    chosen = target or TARGETS[0]
    if chosen not in TARGETS:
        raise ConfigError(f"unknown target {chosen!r} for ExecuTorch: known is {', '.join(TARGETS)}")
    with _quiet():
        need("executorch.exir", "executorch", "export to ExecuTorch")
    adapted = PROFILES[chosen].adapted(gm)
    flat = flattened(dialect(adapted, PROFILES[chosen], chosen))
    sizes = _sizes(flat, signature_of(gm).ranges)
    edge, program = _lowered(exported(flat, sizes))
    with (folder / f"{name}.pte").open("wb") as file:
        program.write_to_file(file)
    return Written(substitutions(adapted), (flat.call, _taken(gm, edge)))


def _taken(gm: fx.GraphModule, edge: Any) -> str:
    """Say how many of the quantized products of a graph XNNPACK took over as such."""
    told = []
    for kind, targets, name in (("linears", (LINEAR,), "linear"), ("convolutions", CONVOLUTIONS, "convolution")):
        wanted = sum(map(has_integer_weight, calls_of(gm, *targets)))
        if wanted or kind == "linears":
            told.append(f"{integer_products(edge, name)} of {wanted} quantized {kind}")
    return f"XNNPACK runs {' and '.join(told)} in int8"


def _sizes(flat: Flat, ranges: Any) -> tuple[dict[int, Any], ...]:
    """Return which sizes vary, and up to where: what memory is planned for must have an end."""
    limits: dict[str, int] = {}
    for leaf in flat.inputs:
        for axis, size in enumerate(leaf.shape):
            if isinstance(size, str):
                most = ranges.get(size, (0, None))[1]
                limits.setdefault(size, most or (LENGTH if axis else ROWS))
    return tuple(
        {axis: Dim.AUTO(max=limits[size]) for axis, size in enumerate(leaf.shape) if isinstance(size, str)}
        for leaf in flat.inputs
    )


def _lowered(program: ExportedProgram) -> tuple[Any, Any]:
    """Return a program in ExecuTorch's edge dialect, with what XNNPACK takes over, and as it is written."""
    with _quiet():
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS  # noqa: PLC0415
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower  # noqa: PLC0415

        try:
            config = EdgeCompileConfig(_check_ir_validity=False)
            partitioner = XnnpackPartitioner([_rule(each) for each in ALL_PARTITIONER_CONFIGS if _is_taken(each)])
            edge = to_edge_transform_and_lower(program, partitioner=[partitioner], compile_config=config)
            return edge, edge.to_executorch()
        except Exception as error:  # its passes raise errors of every kind
            raise ExportError(f"ExecuTorch cannot lower the graph: {first_line(error)}") from error


def _is_taken(config: Any) -> bool:
    return config.__name__ not in _LEFT


def _rule(config: Any) -> Any:
    """Return the rule by which XNNPACK takes an op over; of convolutions narrowed to those that it can reshape."""
    if config.__name__ != "ConvolutionConfig":
        return config

    class Narrowed(config):
        def check_constraints(self, node: fx.Node, program: ExportedProgram) -> bool:
            shape = node.meta["val"].shape
            varying = sum(isinstance(size, torch.SymInt) for size in shape)
            # of one dimension it makes two, by a reshape, which may have one size that varies
            return not (len(shape) == 3 and varying > 1) and bool(super().check_constraints(node, program))

    return Narrowed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what ExecuTorch and torchao say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def integer_products(edge: Any, kind: str) -> int:
    """Return how many products of a kind, with integer weights and activations, the delegates of a program hold."""
    graph = edge.exported_program().graph_module
    held = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    parts = [each.original_module.graph_module for each in held if hasattr(each, "original_module")]
    return sum(_is_integer(node, kind) for part in parts for node in part.graph.nodes)


def _is_integer(node: fx.Node, kind: str) -> bool:
    """Say whether an op is a product of dequantized operands."""
    name = getattr(node.target, "__name__", "")
    reads = [getattr(each.target, "__name__", "") for each in node.all_input_nodes[:2]]
    return name == f"aten.{kind}.default" and all("dequantize" in each for each in reads)
