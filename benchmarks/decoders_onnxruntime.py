"""ONNX Runtime's decoders: the model with its cache as inputs and outputs, as torch exports it, and its quantizers.

Int8: activations per tensor as they come, weights per channel. Int4: groups of 32, activations as int8 in blocks.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder_models import HEAD, NAMES, Flat, Shape, cache_names, flat_axes, flat_example
from decoder_systems import Context, System, stepwise
from systems import quiet
from torch import Tensor


def dynamic(context: Context) -> System:
    """Return the model with every linear in int8."""
    path = context.folder / "ort-int8.onnx"
    if not path.exists():
        ort = importlib.import_module("onnxruntime.quantization")
        options = {"DefaultTensorType": importlib.import_module("onnx").TensorProto.FLOAT, "MatMulConstBOnly": True}
        with quiet():
            float_path = exported(context)
            ort.quantize_dynamic(
                float_path, path, per_channel=True, weight_type=ort.QuantType.QInt8, extra_options=options,
                op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
    return stepwise(Session(path, context))


def four_bits(context: Context) -> System:
    """Return the model with every linear's weights in 4 bits, of which GPT-2's, exported as Gemm, are none."""
    path = context.folder / "ort-int4.onnx"
    if not path.exists():
        quantizer = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer").MatMulNBitsQuantizer
        with quiet():
            onnx = importlib.import_module("onnx")
            made = quantizer(onnx.load(exported(context)), block_size=32, is_symmetric=False, accuracy_level=4)
            made.process()
            made.model.save_model_to_file(str(path))
    return stepwise(Session(path, context))


def exported(context: Context) -> Path:
    """Return the path of the float model."""
    path = context.folder / "ort-float.onnx"
    if not path.exists():
        names = cache_names(context.shape)
        with torch.no_grad():
            torch.onnx.export(
                Flat(context.model), flat_example(context.shape), str(path), input_names=[*NAMES, *names],
                output_names=["logits", *(f"new_{name}" for name in names)], dynamic_axes=flat_axes(context.shape),
                opset_version=17, dynamo=False,
            )  # fmt: skip
    return path


class Session:
    """Steps of a graph; what it returns as its cache is given to it again as it is."""

    def __init__(self, path: Path, context: Context) -> None:
        self.ort, self.shape = importlib.import_module("onnxruntime"), context.shape
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = context.threads, 3
        self.session = self.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.past: list[Any] = []
        self.length = 0

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        shape: Shape = self.shape
        empty = np.zeros((len(ids), shape.key_heads, 0, HEAD), np.float32)
        self.past = [self.ort.OrtValue.ortvalue_from_numpy(empty) for _ in cache_names(shape)]
        self.length = 0
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read tokens."""
        first, self.length = self.length, self.length + ids.shape[1]
        mask = np.ones((len(ids), self.length), np.int64)
        places = np.tile(np.arange(first, self.length), (len(ids), 1))
        binding = self.session.io_binding()
        for name, value in zip(NAMES, (ids.numpy(), mask, places), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, kept in zip(cache_names(self.shape), self.past, strict=True):
            binding.bind_ortvalue_input(name, kept)
        for output in self.session.get_outputs():
            binding.bind_output(output.name)
        self.session.run_with_iobinding(binding)
        logits, *self.past = binding.get_outputs()
        return torch.from_numpy(logits.numpy())[:, -1]
