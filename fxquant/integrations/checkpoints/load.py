"""`load_checkpoint`: a checkpoint that another tool quantized becomes fxquant graphs with the same integers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxquant.backends import Backend, load_backend
from fxquant.errors import CaptureError, DataError, suggest
from fxquant.graph import edit
from fxquant.graph.rebuild import tensor_key
from fxquant.integrations.checkpoints import compressed, gptq
from fxquant.integrations.checkpoints.adopt import Adopt, Layers
from fxquant.integrations.checkpoints.folder import Folder, open_folder, read_json
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.integrations.checkpoints.model import QUANTIZATION, build_model, make_skeleton
from fxquant.memory import give_back
from fxquant.passes.annotate import Annotate
from fxquant.passes.base import Pipeline
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.share_qparams import ShareQParams
from fxquant.program import Program
from fxquant.quantize import capture_any
from fxquant.recipe import Recipe
from fxquant.registry import Registry
from fxquant.stages import lower as lowered

# Reads the quantized modules of a folder by their paths, given what its configuration says and the model.
Reader = Callable[[Folder, Mapping[str, Any], nn.Module], dict[str, Layer]]
METHODS: Registry[Reader] = Registry("quantization method")
METHODS.add(gptq.METHOD, gptq.read_gptq)
METHODS.add(compressed.METHOD, compressed.read_compressed)
# The tensors of a quantized module, behind its path.
PARTS = {gptq.METHOD: gptq.PARTS, compressed.METHOD: compressed.PARTS}
BESIDE = "quantize_config.json"  # where AutoGPTQ keeps what config.json says elsewhere


def load_checkpoint(
    folder: str | Path,
    example_inputs: Any = None,
    *,
    backend: str | Path | Backend = "x86",
    lower: bool = True,
    task: str | None = None,
) -> fx.GraphModule | Program:
    """Read a checkpoint that GPTQModel, AutoGPTQ, Optimum or llm-compressor wrote, and lower it for a backend.

    The model's code is transformers'; no package of those tools is needed, and no code in the folder is run. Integers,
    scales and zero points are those of the files, so the weights of the Q/DQ graph are equal to theirs to the bit.

    Args:
        folder: holds config.json and safetensors, in the formats of docs/checkpoints.md.
        example_inputs: as for `fxquant.quantize`; by default the model's `dummy_inputs`.
        backend: as for `fxquant.quantize`.
        lower: False gives the Q/DQ graph itself.
        task: a kind of model, such as "causal-lm"; by default the class that config.json names.

    Raises:
        DataError: a file or tensor is missing, damaged, or does not fit the others or the model; a format or number of
            bits that fxquant has not; names the file and what was expected.
        CaptureError: the model cannot be captured.
    """
    chosen = load_backend(backend)
    opened = open_folder(folder)
    skeleton = make_skeleton(opened, task)
    method, layers = read_layers(opened, skeleton)
    own = frozenset(f"{path}.{part}" for path in layers for part in PARTS[method])
    model = build_model(opened, skeleton, layers, own)
    graph = _adopted(model, example_inputs, layers, chosen, method)
    del model
    if not lower:
        return graph
    done = lowered(graph)
    give_back()
    return done


def read_layers(folder: Folder, skeleton: nn.Module) -> tuple[str, dict[str, Layer]]:
    """Return the method that a checkpoint is quantized by, and its quantized modules by their paths.

    Raises:
        DataError: as for `load_checkpoint`.
    """
    config = folder.config.get(QUANTIZATION)
    if config is None and (folder.path / BESIDE).is_file():
        config = {"quant_method": gptq.METHOD, **read_json(folder.path / BESIDE)}
    if not isinstance(config, dict):
        raise DataError(
            f"{folder.path / 'config.json'} has no {QUANTIZATION}: expected a checkpoint that is quantized; a float "
            "model is quantized by fxquant.quantize"
        )
    method = str(config.get("quant_method"))
    if method not in METHODS:
        raise DataError(
            f"{folder.path / 'config.json'}: quant_method = {method[:80]!r} cannot be read: {suggest(method, METHODS)}"
        )
    return method, METHODS[method](folder, config, skeleton)


def _adopted(
    model: Any, example_inputs: Any, layers: Mapping[str, Layer], backend: Backend, method: str
) -> fx.GraphModule | Program:
    """Return the Q/DQ graphs of a model whose modules hold the values of layers."""
    by_weight: Layers = {tensor_key(model.get_submodule(path).weight): (path, layers[path]) for path in layers}
    captured = capture_any(model, _example(model) if example_inputs is None else example_inputs)
    adopted: set[str] = set()

    def convert(captured: fx.GraphModule) -> fx.GraphModule:
        gm = edit.clone(captured)
        passes = (*CANONICAL.passes, Adopt(by_weight, adopted), ShareQParams(), Annotate(backend, None))
        Pipeline(passes).run(gm)
        edit.mark(gm, stage="converted", backend=backend.to_dict(), recipe=Recipe(name=method).to_dict())
        return gm

    graph = captured.map(convert) if isinstance(captured, Program) else convert(captured)
    unread = sorted(set(layers) - adopted)
    if unread:
        raise CaptureError(f"{unread[0]} is quantized, and the captured model does not read its weight")
    return graph


def _example(model: Any) -> dict[str, Any]:
    from fxquant.integrations.hf.config import FxQuantConfig  # noqa: PLC0415, imports transformers
    from fxquant.integrations.hf.example import example_of  # noqa: PLC0415

    return example_of(model, FxQuantConfig())
