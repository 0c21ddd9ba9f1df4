"""OpenVINO's decoders, as its makers run language models: weights compressed by NNCF, the cache a state of the model.

The cache of a sequence is chosen by an input of indices, as beams need it: of such models the plugin fuses attention
with its cache. Activations are quantized by the plugin as they come, and the cache is kept in 8 bits: its defaults.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder_models import HEAD, NAMES, Flat, Shape, cache_names, flat_example
from decoder_systems import Context, System, stepwise
from systems import quiet
from torch import Tensor


def eight_bits(context: Context) -> System:
    """Return the model with weights of 8 bits, per channel."""
    return stepwise(Request(context, "INT8_ASYM"))


def four_bits(context: Context) -> System:
    """Return the model with weights of 4 bits in groups of 32, those of the head too."""
    return stepwise(Request(context, "INT4_ASYM", group_size=32, all_layers=True))


class Request:
    """Steps of a compiled model with its state."""

    def __init__(self, context: Context, mode: str, **options: object) -> None:
        openvino = importlib.import_module("openvino")
        path = context.folder / f"openvino-{mode}.xml"
        if not path.exists():
            with quiet():
                write(context, path, mode, options)
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": context.threads}
        compiled = openvino.Core().compile_model(str(path), "CPU", hints | {"PERFORMANCE_HINT": "LATENCY"})
        self.request = compiled.create_infer_request()
        self.length = 0

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        self.request.reset_state()
        self.length = 0
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read tokens."""
        first, self.length = self.length, self.length + ids.shape[1]
        places = np.tile(np.arange(first, self.length), (len(ids), 1))
        tensors = (ids.numpy(), np.ones((len(ids), self.length), np.int64), places)
        given = dict(zip(NAMES, tensors, strict=True)) | {"beam_idx": np.arange(len(ids), dtype=np.int32)}
        found = self.request.infer(given, share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])[:, -1]


def write(context: Context, path: Path, mode: str, options: dict[str, object]) -> None:
    """Write the quantized model with its state."""
    openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    with torch.no_grad():
        model = openvino.convert_model(Flat(context.model), example_input=flat_example(context.shape))
    name_all(model, context.shape)
    keep_state(model, context.shape)
    model = nncf.compress_weights(model, mode=getattr(nncf.CompressWeightsMode, mode), **options)
    openvino.save_model(model, path, compress_to_fp16=False)


def name_all(model: Any, shape: Shape) -> None:
    """Call inputs and outputs what they are."""
    for port, name in zip(model.inputs, (*NAMES, *cache_names(shape)), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(model.outputs, ("logits", *cache_names(shape)), strict=True):
        port.get_tensor().set_names({name if name == "logits" else f"new_{name}"})


def keep_state(model: Any, shape: Shape) -> None:
    """Turn the cache into states, each the rows that an input `beam_idx` names, of no tokens at first."""
    openvino = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset13")
    beams = ops.parameter(openvino.PartialShape([-1]), np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    for name in cache_names(shape):
        port = model.input(name)
        readers = port.get_target_inputs()
        chosen = ops.gather(port, beams, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    pairs = {name: f"new_{name}" for name in cache_names(shape)}
    importlib.import_module("openvino._offline_transformations").apply_make_stateful_transformation(model, pairs)
    batch = ops.gather(ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    sizes = (batch, *(ops.constant(np.array([size], np.int64)) for size in (shape.key_heads, 0, HEAD)))
    empty = ops.broadcast(ops.constant(0.0, dtype=np.float32), ops.concat(list(sizes), 0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()
