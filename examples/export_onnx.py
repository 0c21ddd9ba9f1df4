"""A quantized model in other runtimes: one ONNX file, run by ONNX Runtime and, where it is installed, by OpenVINO.

pip install fxquant[onnx] onnxruntime openvino
python examples/export_onnx.py
"""

import importlib
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import fxquant as fxq


class Encoder(nn.Module):
    """A layer of a Transformer over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (batch, tokens, 64) for ids (batch, tokens)."""
        return self.layer(self.words(ids))


def run_onnxruntime(path: Path, ids: Tensor) -> Tensor:
    """Return what ONNX Runtime computes."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    return torch.from_numpy(found)


def run_openvino(path: Path, ids: Tensor) -> Tensor:
    """Return what OpenVINO computes."""
    core = importlib.import_module("openvino").Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(model([ids.numpy()])[0].copy())


def main() -> None:
    """Quantize with static ranges, export, and compare."""
    if find_spec("onnxscript") is None:
        print("onnxscript is not installed: pip install fxquant[onnx]")
        return
    torch.manual_seed(0)
    model, batches = Encoder().eval(), [torch.randint(100, (4, 12)) for _ in range(8)]
    prepared = fxq.prepare(fxq.capture(model, (batches[0],)), "x86", "static")
    qdq = fxq.convert(fxq.calibrate(prepared, batches, progress=False))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        print(fxq.export(qdq, Path(folder, "onnx")).summary())
        ids = torch.randint(100, (2, 7))  # sizes are free
        for name, run in (("onnxruntime", run_onnxruntime), ("openvino", run_openvino)):
            if find_spec(name) is None:
                print(f"{name} is not installed")
                continue
            found = run(Path(folder, "onnx", "model.onnx"), ids)
            print(f"{name}: largest difference to the Q/DQ graph {(found - qdq(ids)).abs().max():.1e}")


if __name__ == "__main__":
    main()
