"""OpenVINO with NNCF's post-training quantization, as its makers recommend it for Transformers.

The model is converted from torch with eager attention, which OpenVINO fuses as well as SDPA and runs 2 to 4 % faster;
NNCF smooths, quantizes (weights per channel, activations per tensor, attention too) and corrects biases. The plugin
then runs with float32 as the precision of the rest, tuned for latency. With fixed shapes a model is compiled anew for
each shape that it meets.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import Batch
from systems import Context, OnlyTensors, System, attention, quiet

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def free_shapes(context: Context) -> System:
    """Return the quantized model compiled once, for any shape."""
    compiled = Compiled(quantized(context), context.threads)
    return System(compiled, lambda batch: compiled.in_float())


def fixed_shapes(context: Context) -> System:
    """Return the quantized model, compiled for each shape when it first comes."""
    model, ready = quantized(context), dict[tuple[int, ...], Compiled]()

    def of(batch: Batch) -> Compiled:
        shape = tuple(batch["input_ids"].shape)
        if shape not in ready:
            fixed = model.clone()
            fixed.reshape({name: list(shape) for name in NAMES})
            ready[shape] = Compiled(fixed, context.threads)
        return ready[shape]

    return System(lambda **batch: of(batch)(**batch), lambda batch: of(batch).in_float(), embeds=False)


class Compiled:
    """An OpenVINO model on this CPU, called as the torch model was."""

    def __init__(self, model: Any, threads: int) -> None:
        openvino = importlib.import_module("openvino")
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.model = openvino.Core().compile_model(model, "CPU", hints)
        self.request = self.model.create_infer_request()

    def __call__(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return hidden states and pooled output, in memory that the next call overwrites."""
        inputs = {name: batch[name].numpy() for name in NAMES}
        found = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        hidden, pooled = (torch.from_numpy(found[place]) for place in (0, 1))
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)

    def in_float(self) -> str:
        """Return how many linear layers the plugin runs in float, "" if none; it reports the precision of each."""
        nodes = [node.get_rt_info() for node in self.model.get_runtime_model().get_ordered_ops()]
        layers = [node["runtimePrecision"].astype(str) for node in nodes if fully_connected(node)]
        floats = [precision for precision in layers if precision not in {"i8", "u8"}]
        return f"{len(floats)} of {len(layers)} linear layers in float" if floats or not layers else ""


def fully_connected(node: Any) -> bool:
    """Return whether a layer of the compiled model is a linear layer."""
    kind: str = node["layerType"].astype(str)
    return kind == "FullyConnected"


def quantized(context: Context) -> Any:
    """Return the quantized model, from the context's folder if it is there."""
    openvino, path = importlib.import_module("openvino"), context.folder / "openvino.xml"
    if not path.exists():
        nncf, batches = importlib.import_module("nncf"), context.calibration
        with quiet():
            data = nncf.Dataset([{name: batch[name].numpy() for name in NAMES} for batch in batches])
            kind, many = nncf.ModelType.TRANSFORMER, len(batches)
            model = nncf.quantize(converted(context), data, model_type=kind, subset_size=many)
            openvino.save_model(model, path, compress_to_fp16=False)
    return openvino.Core().read_model(path)


def converted(context: Context) -> Any:
    """Return the float model for any batch and any number of tokens."""
    openvino, model = importlib.import_module("openvino"), context.subject.model
    example = tuple(context.calibration[0][name] for name in NAMES)
    inputs = [(name, [-1, -1], np.int64) for name in NAMES]
    with attention(model, "eager"), torch.no_grad():
        return openvino.convert_model(OnlyTensors(model), example_input=example, input=inputs)
