"""A Q/DQ graph as OpenVINO's own files, `.xml` and `.bin`.

Its ONNX reader builds what ONNX can say. Two things it cannot are set in OpenVINO's model afterwards: the levels and
ranges of FakeQuantize where integers do not fill their type, and how activations are quantized at run time.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import fx

from fxquant.errors import ConfigError, suggest
from fxquant.graph import edit
from fxquant.integrations.onnx.attention import SpellOutAttention
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.export import write_dialect
from fxquant.integrations.onnx.profiles import PROFILES
from fxquant.integrations.onnx.zero_points import WHOLE
from fxquant.integrations.openvino.groups import GROUP, DynamicInGroups, without_rounding
from fxquant.integrations.packages import need
from fxquant.integrations.substitutions import Written, substitutions
from fxquant.passes.base import Pipeline
from fxquant.passes.qdq_nodes import QUANTIZE

TARGET = "cpu"
_ACTIVATIONS = (DynamicInGroups(), PerTensorDynamic())
_OPTION = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
_EXPRESSED = "whole range"  # a substitution of ONNX that is none here


def openvino_dialect(gm: fx.GraphModule) -> fx.GraphModule:
    """Return the graph that the written files compute."""
    found = Pipeline((*_ACTIVATIONS, SpellOutAttention(unseen="mean"))).run(edit.clone(gm))
    found.recompile()
    return found


def write_openvino(gm: fx.GraphModule, folder: Path, name: str, target: str | None) -> Written:
    """Write a converted graph as `name`.xml and `name`.bin, and return what was substituted.

    Raises:
        ConfigError: a target that is not "cpu".
        MissingExtraError: a package that exporting needs is not installed.
        ExportError: OpenVINO cannot express an op.
    """
    if target not in (None, TARGET):
        raise ConfigError(f"unknown target {target!r}: {suggest(target, [TARGET])}")
    openvino = need("openvino", "openvino", "export to OpenVINO")
    written = Pipeline(_ACTIVATIONS).run(edit.clone(gm))
    dynamic = without_rounding(written)
    bounds = [node.args[4:6] for node in written.graph.find_nodes(op="call_function", target=QUANTIZE)]
    written = PROFILES["openvino"].dialect(written)
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{name}.onnx"
        write_dialect(written, path, "openvino")
        model = openvino.Core().read_model(path)
        _set_ranges(openvino, model, written, bounds)
        model.set_rt_info(str(GROUP if dynamic else 0), _OPTION)
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return Written(tuple(each for each in substitutions(written) if each.name != _EXPRESSED))


def _set_ranges(openvino: Any, model: Any, gm: fx.GraphModule, bounds: list[tuple[int, int]]) -> None:
    """Give each FakeQuantize the levels and ranges of its quantize, in whose place ONNX has one to its whole type."""
    by_name = {name: op for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}
    nodes = gm.graph.find_nodes(op="call_function", target=QUANTIZE)
    for number, (node, (low, high)) in enumerate(zip(nodes, bounds, strict=True)):
        if (low, high) == WHOLE.get(node.args[6]):
            continue
        convert = by_name[f"quantize_{number}" if number else "quantize"]  # as torch's exporter names results
        fake = convert.input_value(0).get_node()
        scale, zero_point = (edit.get_tensor(gm, each).double().numpy() for each in node.args[1:3])
        assert fake.get_type_name() == "FakeQuantize", "OpenVINO's reader makes one of each quantize"
        ends = [(end - zero_point) * scale for end in (low, high)]
        for place, value in enumerate([*ends, low, high], start=1):
            old = fake.input_value(place).get_node()
            constant = openvino.opset13.constant(np.resize(np.float32(value), tuple(old.shape)))
            fake.input(place).replace_source_output(constant.output(0))
        fake.set_attribute("levels", high - low + 1)
    model.validate_nodes_and_infer_types()
