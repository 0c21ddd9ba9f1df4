"""`FxQuantizer`: what quantizes the graph in an export of transformers, for every format that it exports to."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from transformers.exporters.configs import ExportFormat
from transformers.exporters.quantizers.base import ExportQuantizer

from fxquant.backends import Backend
from fxquant.calibration import calibrate
from fxquant.errors import CaptureError, ConfigError
from fxquant.graph import edit
from fxquant.integrations.hf import onnx_calls
from fxquant.integrations.hf.config import FxQuantConfig
from fxquant.integrations.hf.skips import skipped_modules, unmatched_unsaid
from fxquant.integrations.pt2e.outwards import PROFILES, Profile
from fxquant.integrations.pt2e.spelled import Style, spelled
from fxquant.integrations.substitutions import Substitution, substitutions
from fxquant.ladder import capture
from fxquant.ledger import Ledger, read_ledger
from fxquant.quantize import check_coverage, needs_calibration
from fxquant.recipe import Recipe
from fxquant.stages import convert, prepare

# OpenVINO makes a FakeQuantize of a pair.
_PROFILES = {
    ExportFormat.DYNAMO: PROFILES["torch"],
    ExportFormat.EXECUTORCH: PROFILES["xnnpack"],
    ExportFormat.ONNX: Profile(Style(), onnx_calls.PASSES),
    ExportFormat.OPENVINO: Profile(Style(float_weights=True)),
}


class FxQuantizer(ExportQuantizer):
    """Quantizes the graph that transformers exports, before it is converted: `OnnxConfig(quantizer=FxQuantizer(…))`.

    The exported graph is plain ATen and Q/DQ operators that the converters know, with integer weights.

    Args:
        recipe: as for `FxQuantConfig`.
        backend: as for `FxQuantConfig`; it says which ops are quantized, and in which schemes.
        calibration_dataset: batches of keyword arguments, for static ranges; as for transformers' own quantizers.
        modules_to_not_convert: paths of modules that stay in float, with what is in them.
        strict: raise where an op that should be quantized stays in float.

    `ledger` holds, after an export, what was done to each op of the graph exported last, and `substitutions` what the
    format says in other numbers or another form.
    """

    quantizes_fx_graph = True
    supported_formats = (ExportFormat.DYNAMO, ExportFormat.ONNX, ExportFormat.EXECUTORCH, ExportFormat.OPENVINO)
    required_packages = ("torch",)

    def __init__(
        self,
        recipe: str | Path | Recipe | dict[str, Any] = "static",
        backend: str | Path | Backend | dict[str, Any] = "reference",
        calibration_dataset: Iterable[dict[str, Any]] | None = None,
        modules_to_not_convert: Iterable[str] = (),
        strict: bool = False,
    ) -> None:
        super().__init__(calibration_dataset)
        self.config = FxQuantConfig(recipe, backend, list(modules_to_not_convert), strict)
        self.ledger: Ledger | None = None
        self.substitutions: tuple[Substitution, ...] = ()

    def quantize(self, model: fx.GraphModule, sample_inputs: dict[str, Any], export_format: ExportFormat) -> nn.Module:
        """Return the quantized graph of an exported one, called as that is.

        Raises:
            CaptureError: the graph takes or does what fxquant cannot hold.
            CalibrationError: a batch does not fit, or gives no ranges.
            CoverageError: `strict`, and an op that should be quantized stays in float.
            ExportError: an op that the format cannot express, by name.
        """
        structure = _structure(model, sample_inputs)
        captured = capture(_Flat(model, structure), tuple(structure.tensors(sample_inputs)))
        if not isinstance(captured, fx.GraphModule):
            raise CaptureError("the exported graph cannot be captured again as one graph")
        skipped = skipped_modules(_name_places(captured), self.config.modules_to_not_convert, "exported model")
        with unmatched_unsaid(skipped):
            prepared = prepare(captured, self.config.backend, self.config.wish(skipped))
        if self.config.strict:
            check_coverage(prepared)
        if needs_calibration(prepared):
            batches = (tuple(structure.tensors(batch)) for batch in self.traced_calibration(sample_inputs))
            prepared = calibrate(prepared, batches, progress=False)
        converted = convert(prepared)
        self.ledger = read_ledger(converted)
        profile = _PROFILES[export_format]
        adapted = profile.adapted(converted)
        profile.check(adapted)
        self.substitutions = substitutions(adapted)
        if export_format == ExportFormat.ONNX:
            onnx_calls.call_by_name(adapted)
        return _Quantized(spelled(adapted, profile.style), structure)


@dataclass(frozen=True)
class _Structure:
    """How the exported graph is called: where its tensors are among its inputs, the other leaves, and its output."""

    inputs: pytree.TreeSpec
    others: dict[int, Any]
    outputs: pytree.TreeSpec

    def tensors(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors of inputs of this structure, in order."""
        leaves, found = pytree.tree_flatten(dict(inputs))
        if found != self.inputs:
            raise ConfigError(f"the graph was exported with {self.inputs}, and a batch of calibration holds {found}")
        return [leaf for at, leaf in enumerate(leaves) if at not in self.others]

    def keywords(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """Return the keyword arguments that hold these tensors."""
        rest = iter(tensors)
        leaves = [self.others[at] if at in self.others else next(rest) for at in range(self.inputs.num_leaves)]
        given: dict[str, Any] = pytree.tree_unflatten(leaves, self.inputs)
        return given


def _structure(model: fx.GraphModule, sample_inputs: Mapping[str, Any]) -> _Structure:
    leaves, inputs = pytree.tree_flatten(dict(sample_inputs))
    with torch.no_grad():  # with copies: a graph may write to a cache
        found, outputs = pytree.tree_flatten(model(**pytree.tree_unflatten([_copy(leaf) for leaf in leaves], inputs)))
    wrong = [type(each).__name__ for each in found if not isinstance(each, Tensor)]
    if wrong:
        raise CaptureError(f"the exported graph returns a {wrong[0]} among its tensors, which fxquant cannot hold")
    return _Structure(inputs, {at: leaf for at, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}, outputs)


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


class _Flat(nn.Module):
    """Calls an exported graph with its tensors alone, and returns those of its output: a cache is more than tensors."""

    def __init__(self, model: fx.GraphModule, structure: _Structure) -> None:
        super().__init__()
        self.model, self.structure = model, structure

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the graph's output."""
        return tuple(pytree.tree_leaves(self.model(**self.structure.keywords(tensors))))


class _Quantized(nn.Module):
    """The quantized graph in the place of the exported one: its keyword arguments, and the structure of its output."""

    def __init__(self, graph: fx.GraphModule, structure: _Structure) -> None:
        super().__init__()
        # what checks the arguments of a call is not to be exported with the graph
        graph.graph.set_codegen(fx.graph.CodeGen())
        graph.recompile()
        self.quantized = graph  # not `graph`, which the exported module will have of its own

        def forward(**inputs: Any) -> Any:
            return pytree.tree_unflatten(list(graph(*structure.tensors(inputs))), structure.outputs)

        names = structure.keywords([torch.empty(0)] * (structure.inputs.num_leaves - len(structure.others)))
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def _name_places(captured: fx.GraphModule) -> list[str]:
    """Give ops that read a weight the path of its module, which an exported graph has lost, and return the paths."""
    found: dict[str, None] = {}
    for node in captured.graph.nodes:
        for constant in filter(edit.is_constant, node.all_input_nodes):
            module = str(constant.target).removeprefix("model.").rpartition(".")[0]
            if module and not edit.path_of(node):
                edit.mark(node, path=module)
                found[module] = None
    return list(found)
