"""Other runtimes that read what `export` writes, and can run it here: what `fxquant verify` compares an artifact on.

An entry of `RUNTIMES` is all that a further one needs. Numbers that a file leaves open are set to be computed as the
file says: in float32 where it does not quantize.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.integrations.onnx.profiles import PROFILES
from fxquant.integrations.openvino.export import openvino_dialect
from fxquant.integrations.pt2e import outwards as pt2e
from fxquant.registry import Registry
from fxquant.verification.whole import Call

# Loads a file whose inputs are called so, for this many threads; what a call returns may be overwritten by the next.
Start = Callable[[Path, Sequence[str], int], Call]


@dataclass(frozen=True)
class Runtime:
    """A runtime: the package to import, how to install it, format, target and name of its files, and how to run them.

    `reference` returns the graph that a file computes: the Q/DQ graph with the substitutions of the export.
    """

    package: str
    install: str
    format: str
    target: str | None
    file: str
    reference: Callable[[fx.GraphModule], fx.GraphModule]
    start: Start

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.package) is not None


RUNTIMES: Registry[Runtime] = Registry("runtime")


def _onnxruntime(path: Path, names: Sequence[str], threads: int) -> Call:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # activations stay in float32
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    places = {each.name: names.index(each.name) for each in session.get_inputs()}

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        found = session.run(None, {name: inputs[place].numpy() for name, place in places.items()})
        return [torch.from_numpy(each) for each in found]

    return call


def _openvino(path: Path, names: Sequence[str], threads: int) -> Call:
    return _compiled(path, names, {"INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})


def _openvino_ir(path: Path, names: Sequence[str], threads: int) -> Call:
    return _compiled(path, names, {"INFERENCE_NUM_THREADS": threads})


def _compiled(path: Path, names: Sequence[str], options: dict[str, int]) -> Call:
    core = importlib.import_module("openvino").Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", **options}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    request = compiled.create_infer_request()
    places = {each.get_any_name(): names.index(each.get_any_name()) for each in compiled.inputs}

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        given = {name: inputs[place].numpy() for name, place in places.items()}
        found = request.infer(given, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(found[place]) for place in range(len(found))]

    return call


def _executorch(path: Path, names: Sequence[str], threads: int) -> Call:
    runtime = importlib.import_module("executorch.runtime").Runtime.get()
    method = runtime.load_program(path).load_method("forward")
    return lambda inputs: method.execute(list(inputs))


def _xnnpack(gm: fx.GraphModule) -> fx.GraphModule:
    found = pt2e.PROFILES["xnnpack"].adapted(gm)
    found.recompile()
    return found


def _dialect(target: str) -> Callable[[fx.GraphModule], fx.GraphModule]:
    def dialect(gm: fx.GraphModule) -> fx.GraphModule:
        found = PROFILES[target].dialect(gm)
        found.recompile()
        return found

    return dialect


for _name, _start in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
    _install = f"pip install {_name} 'fxquant[onnx]'"
    RUNTIMES.add(_name, Runtime(_name, _install, "onnx", _name, "model.onnx", _dialect(_name), _start))
_install = "pip install 'fxquant[openvino]'"
RUNTIMES.add(
    "openvino-ir", Runtime("openvino", _install, "openvino", None, "model.xml", openvino_dialect, _openvino_ir)
)
_install = "pip install 'fxquant[executorch]'"
RUNTIMES.add("executorch", Runtime("executorch", _install, "executorch", "xnnpack", "model.pte", _xnnpack, _executorch))
