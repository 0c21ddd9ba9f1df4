"""What is set right in an exported ONNX model before it is written: constants, names of sizes, metadata.

Imported only where `onnx_ir` is installed, which torch's exporter itself needs.
"""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import onnx_ir as ir
from torch import fx

from fxquant import manifest
from fxquant.graph import edit
from fxquant.graph.signature import signature_of
from fxquant.integrations.onnx.implicit import cache, strip
from fxquant.integrations.substitutions import substitutions

# A protobuf file holds 2 GiB at most; what is beside the tensors needs some of it.
LARGEST = 1_900_000_000
TABLE = ".calib"  # TensorRT's calibration cache
_PACKED = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4}


def finish(program: Any, dialect: fx.GraphModule, path: Path, target: str, form: str) -> None:
    """Set right what the exporter made of a dialect graph, and write it in the form of a profile."""
    model = program.model
    _fold_casts(model.graph)
    if form == "implicit":
        path.with_suffix(TABLE).write_text(cache(strip(model.graph)))
    _drop_zeros(model.graph)
    _name_sizes(model.graph, dialect)
    for node in model.graph:
        node.metadata_props.clear()  # stack traces of the machine that exported
    _describe(model, dialect, target)
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    ir.save(model, path, external_data=f"{path.name}.data" if total > LARGEST else None)


def _fold_casts(graph: Any) -> None:
    """Store constants of 4 bits as such: torch has no type for them, so the graph has a cast behind bytes."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0].const_value is None:
            continue
        wanted = ir.DataType(node.attributes["to"].as_int())
        if wanted in _PACKED:
            _fold(graph, node, wanted)


def _fold(graph: Any, node: Any, wanted: Any) -> None:
    source, output = node.inputs[0], node.outputs[0]
    values = source.const_value.numpy().astype(_PACKED[wanted])
    name = f"{source.name}_{wanted.name.lower()}"
    folded = ir.Value(
        name=output.name if name in graph.initializers else name,
        type=ir.TensorType(wanted),
        shape=ir.Shape(values.shape),
        const_value=ir.Tensor(values, dtype=wanted),
    )
    output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)
    graph.register_initializer(folded)
    if not source.uses():
        del graph.initializers[source.name]


def _drop_zeros(graph: Any) -> None:
    """Leave out the zero points of symmetric constants, which default to zero: kernels for none are the faster ones."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3 or not node.inputs[0].is_initializer():
            continue
        zero_point = node.inputs[2]
        if zero_point is not None and zero_point.const_value is not None and not zero_point.const_value.numpy().any():
            node.resize_inputs(2)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _name_sizes(graph: Any, dialect: fx.GraphModule) -> None:
    """Give the sizes that vary the names that the graph's signature has for them."""
    names: dict[str, str] = {}
    for value, leaf in zip(graph.inputs, signature_of(dialect).leaves, strict=True):
        for found, wanted in zip(value.shape or (), leaf.shape, strict=True):
            if isinstance(found, ir.SymbolicDim) and found.value is not None and isinstance(wanted, str):
                names.setdefault(found.value, wanted)
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: Any, names: dict[str, str]) -> Any:
    if not isinstance(size, ir.SymbolicDim) or size.value is None:
        return size
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), size.value)


def _describe(model: Any, dialect: fx.GraphModule, target: str) -> None:
    facts = edit.marks(dialect)
    model.producer_name, model.producer_version = "fxquant", manifest.versions()["fxquant"]
    model.metadata_props.update(
        {
            "fxquant.target": target,
            "fxquant.backend": facts["backend"]["name"],
            "fxquant.recipe": json.dumps(facts["recipe"]),
            "fxquant.substitutions": json.dumps([each.to_dict() for each in substitutions(dialect)]),
        }
    )
