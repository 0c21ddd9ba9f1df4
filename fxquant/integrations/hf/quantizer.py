"""The quantizer that `from_pretrained` calls: a loaded float model becomes graphs, and graphs are read without one."""

import copy
import gc
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from fxquant.backends import load_backend
from fxquant.capture_generation import capture_generation, generates
from fxquant.errors import CaptureError, ConfigError, DataError
from fxquant.generation.skeleton import sharing
from fxquant.integrations.hf import checkpoint
from fxquant.integrations.hf.config import METHOD, FxQuantConfig
from fxquant.integrations.hf.example import defaults_of, example_of, filled
from fxquant.integrations.hf.loss import kind_of, label_names
from fxquant.integrations.hf.model import Quantized, install
from fxquant.integrations.hf.skips import skipped_modules, unmatched_unsaid
from fxquant.ladder import capture
from fxquant.memory import give_back
from fxquant.program import Program
from fxquant.quantize import quantize

log = logging.getLogger("fxquant.integrations")


@register_quantizer(METHOD)
class FxHfQuantizer(HfQuantizer):
    """Quantizes a model that transformers has loaded, or lets it load graphs that `save_pretrained` wrote.

    The model stays of its class, with its own `generate`; its forward runs the lowered graphs, and its float weights
    are gone.
    """

    requires_calibration = False
    quantization_config: FxQuantConfig

    def __init__(self, quantization_config: FxQuantConfig, **kwargs: Any) -> None:
        # a copy: what is found out for this model is not to stand in the config of the next
        super().__init__(copy.copy(quantization_config), **kwargs)
        self._stored: checkpoint.Stored | None = None
        self._quantized: Quantized | None = None
        self._shapes: dict[str, torch.Size] = {}  # of the float model, as its configuration has them

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a model that is spread: its graphs run on one device.

        Raises:
            ConfigError: the device map names several devices, or a disk.
        """
        places = kwargs.get("device_map")
        named = {str(place) for place in places.values()} if isinstance(places, Mapping) else set()
        if len(named) > 1 or "disk" in named:
            raise ConfigError(
                f"device_map spreads the model over {', '.join(sorted(named))}: a quantized graph runs on one device; "
                'give device_map="cpu", or leave it out'
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32, which models are quantized in and what stays float runs in."""
        if dtype not in (None, torch.float32):
            log.info("fxquant loads the model in float32, not in %s", dtype)
        return torch.float32

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        """Return how names in the checkpoint are to be changed: those of graphs are what they are.

        Newer versions of transformers give the model, too.
        """
        if self.pre_quantized:
            return []
        return list(super().update_weight_conversions(weight_conversions, *model))  # type: ignore[no-untyped-call]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            self._stored = checkpoint.read_stored(kwargs.get("checkpoint_files"), type(model))
            checkpoint.make_room(model, self._stored)
        else:
            self._shapes = {name: tensor.shape for name, tensor in model.named_parameters()}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._stored is not None:
            backend = load_backend(self.quantization_config.backend)
            self._quantized = checkpoint.restore(model, self._stored, backend)
            self._stored = None
        else:
            self._check_shapes(model)
            self._quantized = quantize_loaded(model, self.quantization_config)
        install(model, self._quantized)
        gc.collect()  # nodes of the float graph form cycles, which would hold its weights for long
        give_back()
        return model

    def _check_shapes(self, model: Any) -> None:
        """Refuse weights that do not fit: before 5.23 transformers takes any where a model is to be quantized."""
        for name, tensor in model.named_parameters():
            wanted = self._shapes.get(name, tensor.shape)
            if tensor.shape != wanted:
                raise DataError(
                    f"{name} has shape {tuple(tensor.shape)} in the checkpoint, and config.json asks for "
                    f"{tuple(wanted)}: one of them is of another model"
                )

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what `save_pretrained` writes: the tensors of the Q/DQ graphs, and the graphs."""
        assert self._quantized is not None, "transformers saves what it has loaded"
        return checkpoint.state_of(model, self._quantized), {}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Say that a quantized model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether a Trainer takes the model: it does, to evaluate; a step of training is refused by its forward."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """As `is_trainable`: without it a Trainer refuses the model before it knows that it is to evaluate."""
        return True


def quantize_model(model: Any, config: FxQuantConfig) -> Any:
    """Return what `from_pretrained` would with a config, of a float model that is in memory and left as it is.

    Raises:
        FxQuantError: whatever the stages raise.
    """
    quantized = sharing(model)
    quantizer = FxHfQuantizer(config, pre_quantized=False)
    quantized.hf_quantizer, quantized.quantization_method = quantizer, METHOD
    quantizer.postprocess_model(quantized)
    return quantized


def quantize_loaded(model: Any, config: FxQuantConfig) -> Quantized:
    """Return the lowered graphs of a float model, which is left as it is.

    `config` comes out with the modules that were skipped, and without its batches.

    Raises:
        CaptureError: the model cannot be captured whole, or generates in a way that its graphs would not.
        ConfigError: the config asks for what the model does not have.
    """
    example = {name: value for name, value in example_of(model, config).items() if name not in label_names(model)}
    defaults, loss = defaults_of(model, example), kind_of(model, example)
    paths = [path for path, _ in model.named_modules() if path]
    config.modules_to_not_convert = skipped_modules(paths, config.modules_to_not_convert, type(model).__name__)
    with unmatched_unsaid(config.modules_to_not_convert):
        graph = quantize(
            _captured(model, example),
            example,
            backend=config.backend,
            recipe=config.wish(config.modules_to_not_convert),
            calibration=_batches(model, config.calibration, defaults),
            strict=config.strict,
            padded_outputs=config.padded_outputs,
        )
    config.calibration = config.example_inputs = None
    return Quantized(graph, {} if generates(model) else defaults, loss)


def _captured(model: Any, example: dict[str, Any]) -> fx.GraphModule | Program:
    if generates(model):
        return capture_generation(model, example)
    graph = capture(model, example)
    if isinstance(graph, Program):
        raise CaptureError(
            f"a {type(model).__name__} cannot be captured whole, only {len(graph.graphs)} of its modules can, which no "
            "checkpoint of transformers holds: load the float model, and quantize it with fxquant.quantize"
        )
    return graph


def _batches(model: Any, batches: Iterable[Any] | None, defaults: Mapping[str, int]) -> Iterable[Any] | None:
    """Return the batches as calls of the graph: without labels, with the masks that were left out."""
    if batches is None:
        return None
    labels = label_names(model)
    return (
        filled({name: value for name, value in batch.items() if name not in labels}, defaults)
        if isinstance(batch, Mapping)
        else batch
        for batch in batches
    )
