"""fxquant as a quantizer of Optimum: `FxQuantizer`, and the configuration that Optimum's own fx quantization had."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fxquant.integrations.packages import need

need("optimum", "optimum", "fxquant.integrations.optimum")
need("transformers", "optimum", "fxquant.integrations.optimum", (5, 17))

from optimum.configuration_utils import BaseConfig  # noqa: E402, after the checks
from optimum.quantization_base import OptimumQuantizer  # noqa: E402

from fxquant.config import known_name  # noqa: E402
from fxquant.errors import ConfigError  # noqa: E402
from fxquant.evaluation.pretrained import load_model  # noqa: E402
from fxquant.integrations.hf.config import FxQuantConfig  # noqa: E402
from fxquant.integrations.hf.quantizer import quantize_model  # noqa: E402
from fxquant.integrations.qconfig import QConfig, QConfigUnit  # noqa: E402
from fxquant.recipe import Override, Recipe  # noqa: E402

__all__ = ["FxQuantizer", "QConfig", "QConfigUnit", "QuantizationConfig"]
APPROACHES = ("dynamic", "static", "weight-only")
# What an object type of torch is called in the backend files.
_OPS = {"Linear": "linear*", "Embedding": "embedding*", "Conv1d": "conv*", "Conv2d": "conv*", "matmul": "matmul*"}
_FILE = "fx_quantization_config.json"


class QuantizationConfig(BaseConfig):
    """What a quantizer is told, as Optimum saves it: `fx_quantization_config.json`.

    Args:
        approach: "dynamic", "static" or "weight-only".
        qconfig: for the whole model, or its data; None: the packaged recipe of that name.
        module_name: pairs of a module's path and its own QConfig, or None to keep it in float.
        object_type: pairs of "torch.nn.Linear" and so on, and a QConfig or None.
        backend: a packaged backend's name, or the path of a backend file.
        kwargs: what Optimum adds when it saves: versions.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    CONFIG_NAME = _FILE
    FULL_CONFIGURATION_FILE = _FILE

    def __init__(
        self,
        approach: str = "dynamic",
        qconfig: QConfig | Mapping[str, Any] | None = None,
        module_name: Iterable[Sequence[Any]] = (),
        object_type: Iterable[Sequence[Any]] = (),
        backend: str = "x86",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        known_name("approach", approach, APPROACHES, "approach")
        self.approach, self.backend = approach, backend
        self.qconfig = _data(qconfig)
        self.module_name = [[name, _data(each)] for name, each in module_name]
        self.object_type = [[name, _data(each)] for name, each in object_type]
        self.recipe()

    def recipe(self) -> Recipe:
        """Return the recipe that it means: modules before types of modules before the whole model."""
        by_name = [self._override(each, path=name) for name, each in self.module_name]
        by_type = [self._override(each, op=_op(name)) for name, each in self.object_type]
        specs = {} if self.qconfig is None else QConfig.from_dict(self.qconfig).specs(self.approach)
        return Recipe(name="optimum", base=self.approach, specs=specs, overrides=(*by_name, *by_type))

    def _override(self, qconfig: Mapping[str, Any] | None, path: str = "*", op: str = "*") -> Override:
        if qconfig is None:
            return Override(path=path, op=op, quantize=False)
        return Override(path=path, op=op, specs=QConfig.from_dict(qconfig).specs(self.approach))


class FxQuantizer(OptimumQuantizer):
    """Quantizes a model of transformers in Optimum's way; what it writes is loaded by transformers' `from_pretrained`.

    Args:
        model: in float32; left as it is.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches: Iterable[Mapping[str, Any]] | None = None

    @classmethod
    def from_pretrained(cls, model_or_path: Any, file_name: str | None = None, *, task: str | None = None) -> Self:
        """Return the quantizer of a model, or of the text model in a folder.

        Args:
            model_or_path: a model of transformers, or a folder in Hugging Face's layout.
            file_name: None; the files of a checkpoint are those that its index names.
            task: as for `fxquant quantize --task`; by default the class that config.json names.

        Raises:
            DataError: the folder holds no model, or weights of other shapes than config.json asks for.
        """
        if file_name is not None:
            raise ConfigError(f"file_name = {file_name!r}: leave it out; the files of a checkpoint are known from it")
        if isinstance(model_or_path, str | Path):
            return cls(load_model(model_or_path, task)[0])
        return cls(model_or_path)

    def calibrate(self, dataset: Iterable[Mapping[str, Any]]) -> Self:
        """Set the batches, keyword arguments of the model, on which `quantize` finds static ranges; return itself."""
        self.batches = dataset
        return self

    fit = calibrate

    def quantize(
        self,
        save_dir: str | Path,
        file_prefix: str | None = None,
        *,
        quantization_config: QuantizationConfig | None = None,
        example_inputs: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> Any:
        """Quantize the model, write it and the configuration to a folder, and return the quantized model.

        Args:
            save_dir: the folder; nothing is written where quantizing fails.
            file_prefix: the variant in the names of the files of weights, as `from_pretrained(variant=…)` wants it.
            quantization_config: by default the packaged recipe "dynamic".
            example_inputs: as for `FxQuantConfig`.
            strict: as for `fxquant.quantize`.

        Raises:
            FxQuantError: whatever the stages raise.
        """
        asked = quantization_config or QuantizationConfig()
        config = FxQuantConfig(
            asked.recipe(),
            asked.backend,
            strict=strict,
            example_inputs=example_inputs,
            calibration=self.batches,
        )
        quantized = quantize_model(self.model, config)
        quantized.save_pretrained(save_dir, variant=file_prefix)
        asked.save_pretrained(save_dir)
        return quantized


def _data(given: QConfig | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a QConfig as it is saved, checked."""
    if given is None:
        return None
    return (given if isinstance(given, QConfig) else QConfig.from_dict(given)).to_dict()


def _op(name: str) -> str:
    short = name.rpartition(".")[2]
    known_name("object_type", short, _OPS, "type of modules")
    return _OPS[short]
