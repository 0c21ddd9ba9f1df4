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
from fxquant.integrations.pt2e import outwards as pt2e
from fxquant.registry import Registry
from fxquant.verification.whole import Call

# Loads the one graph in the folder of an export, whose inputs are called so, for this many threads.
Start = Callable[[Path, Sequence[str], int], Call]


@dataclass(frozen=True)
class Runtime:
    """A runtime: the package to import, how to install it, the format and target of its files, and how to run them.

    `reference` returns the graph that a file computes: the Q/DQ graph with the substitutions of the export.
    """

    package: str
    install: str
    format: str
    target: str | None
    reference: Callable[[fx.GraphModule], fx.GraphModule]
    start: Start

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.package) is not None


RUNTIMES: Registry[Runtime] = Registry("runtime")


def _onnxruntime(folder: Path, names: Sequence[str], threads: int) -> Call:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # activations stay in float32
    session = runtime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    places = {each.name: names.index(each.name) for each in session.get_inputs()}

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        found = session.run(None, {name: inputs[place].numpy() for name, place in places.items()})
        return [torch.from_numpy(each) for each in found]

    return call


def _openvino(folder: Path, names: Sequence[str], threads: int) -> Call:
    core = importlib.import_module("openvino").Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    compiled = core.compile_model(core.read_model(folder / "model.onnx"), "CPU", hints)
    request = compiled.create_infer_request()
    places = {each.get_any_name(): names.index(each.get_any_name()) for each in compiled.inputs}

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        found = request.infer({name: inputs[place].numpy() for name, place in places.items()}, share_inputs=True)
        return [torch.from_numpy(found[place]) for place in range(len(found))]

    return call


def _executorch(folder: Path, names: Sequence[str], threads: int) -> Call:
    runtime = importlib.import_module("executorch.runtime").Runtime.get()
    method = runtime.load_program(folder / "model.pte").load_method("forward")
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
    RUNTIMES.add(_name, Runtime(_name, _install, "onnx", _name, _dialect(_name), _start))
RUNTIMES.add(
    "executorch",
    Runtime("executorch", "pip install 'fxquant[executorch]'", "executorch", "xnnpack", _xnnpack, _executorch),
)
