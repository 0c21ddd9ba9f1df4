"""The files that ONNX Runtime's quantizers and NNCF write of any model whose inputs and outputs are tensors.

For models that are not like BERT, which have systems of their own (peers_onnxruntime.py, peers_openvino.py). Export and
options are the same as there: eager attention, from TorchScript, with ONNX Runtime's fusions for the kind of model;
weights per channel; products with a weight alone in the static form; NNCF's preset for Transformers.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Batch
from peers_onnxruntime import with_shapes
from systems import attention, quiet
from torch import Tensor, nn


@dataclass(frozen=True)
class Source:
    """A model with batches to calibrate; files go to `folder`. A size of the batches that is not an image's is free."""

    model: Any
    calibration: list[Batch]
    folder: Path

    @property
    def names(self) -> list[str]:
        return list(self.calibration[0])

    def free(self, name: str) -> list[int]:
        """Return the places of the sizes of an input that vary: rows, and tokens where it has any."""
        return [0, 1] if self.calibration[0][name].ndim == 2 else [0]


class Tuples(nn.Module):
    """A model called by position that returns the tensors of its output in a tuple."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self.names = source.model, source.names
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return all that the model computes."""
        found: tuple[Tensor, ...] = self.model(**dict(zip(self.names, inputs, strict=True))).to_tuple()
        return found


def ort_dynamic(source: Source) -> Path:
    """Return the path of a graph with activations quantized per tensor as they come."""
    path = source.folder / "ort-dynamic.onnx"
    if not path.exists():
        with quiet():
            ort = importlib.import_module("onnxruntime.quantization")
            options = {"DefaultTensorType": importlib.import_module("onnx").TensorProto.FLOAT}
            ort.quantize_dynamic(
                optimized(source), path, per_channel=True, weight_type=ort.QuantType.QInt8, extra_options=options
            )
    return path


def ort_static(source: Source) -> Path:
    """Return the path of a graph with activations in ranges from calibration."""
    path = source.folder / "ort-static.onnx"
    if not path.exists():
        with quiet():
            ort = importlib.import_module("onnxruntime.quantization")
            batches: Iterator[Any] = iter([{n: each.numpy() for n, each in b.items()} for b in source.calibration])
            reader = type("Reader", (ort.CalibrationDataReader,), {"get_next": lambda self: next(batches, None)})()
            ort.quantize_static(
                with_shapes(optimized(source)), path, reader, ort.QuantFormat.QOperator,
                op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, extra_options={"MatMulConstBOnly": True},
                activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            )  # fmt: skip
    return path


def optimized(source: Source) -> Path:
    """Return the path of the float graph with the fusions that ONNX Runtime has for this kind of model."""
    path, kind = source.folder / "ort-float.onnx", source.model.config.model_type
    options = importlib.import_module("onnxruntime.transformers.fusion_options").FusionOptions(kind)
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    config = source.model.config  # attribute_map gives GPT-2 these names as well
    heads, hidden = config.num_attention_heads, config.hidden_size
    optimizer.optimize_model(str(exported(source)), kind, heads, hidden, options).save_model_to_file(str(path))
    return path


def exported(source: Source) -> Path:
    """Return the path of the float model as torch exports it."""
    path, example = source.folder / "ort-export.onnx", tuple(source.calibration[0].values())
    if not path.exists():
        axes = {name: dict(zip(source.free(name), ("batch", "sequence"), strict=False)) for name in source.names}
        with attention(source.model, "eager"), torch.no_grad():
            torch.onnx.export(
                Tuples(source), example, str(path), input_names=source.names, dynamic_axes=axes, opset_version=17,
                dynamo=False,
            )  # fmt: skip
    return path


def nncf(source: Source) -> Path:
    """Return the path of the model as NNCF quantizes it for OpenVINO."""
    path = source.folder / "openvino.xml"
    if not path.exists():
        openvino, maker = importlib.import_module("openvino"), importlib.import_module("nncf")
        with quiet():
            data = maker.Dataset([list(map(np.asarray, batch.values())) for batch in source.calibration])
            many, kind = len(source.calibration), maker.ModelType.TRANSFORMER
            model = maker.quantize(converted(source), data, model_type=kind, subset_size=many)
            openvino.save_model(model, path, compress_to_fp16=False)
    return path


def converted(source: Source) -> Any:
    """Return the float model in OpenVINO, its inputs called as the model calls them."""
    openvino, example = importlib.import_module("openvino"), source.calibration[0]
    shapes = [[-1 if place in source.free(name) else size for place, size in enumerate(each.shape)]
              for name, each in example.items()]  # fmt: skip
    with attention(source.model, "eager"), torch.no_grad():
        model = openvino.convert_model(Tuples(source), example_input=tuple(example.values()), input=shapes)
    for port, name in zip(model.inputs, example, strict=True):
        port.get_tensor().set_names({name})
    return model


# what writes the file of each, and the runtime in fxquant's table that runs it
FILES: dict[str, tuple[Callable[[Source], Path], str]] = {
    "ORT int8 dynamic": (ort_dynamic, "onnxruntime"),
    "ORT int8 static": (ort_static, "onnxruntime"),
    "OpenVINO int8": (nncf, "openvino"),
}
