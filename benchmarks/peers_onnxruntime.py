"""ONNX Runtime with its own fusions for BERT and its own quantizers.

Attention is recognized only in a TorchScript export of the eager implementation. Dynamic: on the fused graph, weights
per channel; that is the fastest that ONNX Runtime has. Static: there is no static kernel for fused attention, which
would stay in float, so attention is left unfused, and only products with a weight are quantized; as operators, which
came out faster than Q/DQ pairs.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from systems import Context, OnlyTensors, System, attention, quiet

NAMES = ("input_ids", "attention_mask", "token_type_ids")
INTEGER = ("QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm")
FLOAT = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention", "MatMulNBits")


def dynamic(context: Context) -> System:
    """Return the fused graph with activations quantized per tensor as they come."""
    path = context.folder / "ort-dynamic.onnx"
    if not path.exists():
        with quiet():
            ort = importlib.import_module("onnxruntime.quantization")
            options = {"DefaultTensorType": importlib.import_module("onnx").TensorProto.FLOAT}
            fused = optimized(context, fuse_attention=True)
            ort.quantize_dynamic(fused, path, per_channel=True, weight_type=ort.QuantType.QInt8, extra_options=options)
    return session(path, context.threads)


def static(context: Context) -> System:
    """Return the graph with activations in ranges from calibration."""
    path = context.folder / "ort-static.onnx"
    if not path.exists():
        with quiet():
            ort = importlib.import_module("onnxruntime.quantization")
            unfused = with_shapes(optimized(context, fuse_attention=False))
            types = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8}
            ort.quantize_static(
                unfused, path, reader(context), ort.QuantFormat.QOperator, op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True, extra_options={"MatMulConstBOnly": True}, **types,
            )  # fmt: skip
    return session(path, context.threads)


def optimized(context: Context, fuse_attention: bool) -> Path:
    """Return the path of the float graph with ONNX Runtime's fusions for BERT."""
    config, path = context.subject.config, context.folder / f"ort-float-{int(fuse_attention)}.onnx"
    options = importlib.import_module("onnxruntime.transformers.fusion_options").FusionOptions("bert")
    options.enable_attention = fuse_attention
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    heads, hidden = config.num_attention_heads, config.hidden_size
    fused = optimizer.optimize_model(str(exported(context)), "bert", heads, hidden, options)
    fused.save_model_to_file(str(path))
    return path


def exported(context: Context) -> Path:
    """Return the path of the float model as torch exports it."""
    path, model = context.folder / "ort-export.onnx", context.subject.model
    if not path.exists():
        example = tuple(context.calibration[0][name] for name in NAMES)
        outputs = ("last_hidden_state", "pooler_output")
        axes = {name: {0: "batch", 1: "sequence"} for name in (*NAMES, outputs[0])} | {outputs[1]: {0: "batch"}}
        with attention(model, "eager"), torch.no_grad():
            torch.onnx.export(
                OnlyTensors(model), example, str(path), input_names=NAMES, output_names=outputs, dynamic_axes=axes,
                opset_version=17, dynamo=False,
            )  # fmt: skip
    return path


def with_shapes(path: Path) -> Path:
    """Return a graph in which each tensor has its type: static quantization skips those that have none."""
    onnx = importlib.import_module("onnx")
    infer = importlib.import_module("onnxruntime.tools.symbolic_shape_infer").SymbolicShapeInference.infer_shapes
    found = path.with_suffix(".shapes.onnx")
    onnx.save(infer(onnx.load(path), auto_merge=True), found)
    return found


def reader(context: Context) -> Any:
    """Return the calibration batches as static quantization asks for them."""
    base = importlib.import_module("onnxruntime.quantization").CalibrationDataReader
    batches: Iterator[Any] = ({name: b[name].numpy() for name in NAMES} for b in context.calibration)
    return type("Reader", (base,), {"get_next": lambda self: next(batches, None)})()


def session(path: Path, threads: int) -> System:
    """Return a quantized graph as a system; its proof is the graph that ONNX Runtime made of it."""
    ort, final = importlib.import_module("onnxruntime"), path.with_suffix(".final.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.optimized_model_filepath = str(final)
    run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run

    def call(**batch: torch.Tensor) -> SimpleNamespace:
        hidden, pooled = run(None, {name: batch[name].numpy() for name in NAMES})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden), pooler_output=torch.from_numpy(pooled))

    remark = in_float(final)
    return System(call, lambda batch: remark)


def in_float(path: Path) -> str:
    """Return how many linear layers of a graph multiply floats, "" if none does; those of attention have no weight."""
    graph = importlib.import_module("onnx").load(path).graph
    weights = {each.name for each in graph.initializer if len(each.dims) == 2}
    floats = [node for node in graph.node if node.op_type in FLOAT and weights.intersection(node.input)]
    integers = [node for node in graph.node if node.op_type in INTEGER]
    return f"{len(floats)} linear layers in float, {len(integers)} in int8" if floats or not integers else ""
