"""`FxQuantConfig`: what `from_pretrained(…, quantization_config=…)` is given, and what config.json keeps of it."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from fxquant.backends import Backend, load_backend
from fxquant.backends.load import read_backend
from fxquant.config import expect, known_keys
from fxquant.errors import ConfigError
from fxquant.passes.unpad import check_padded_outputs
from fxquant.recipe import Override, Recipe

METHOD = "fxquant"  # the quant_method of config.json
_KEPT = ("backend", "modules_to_not_convert", "padded_outputs", "recipe", "strict")


@register_quantization_config(METHOD)
class FxQuantConfig(QuantizationConfigMixin):
    """How transformers is to quantize a model with fxquant while it loads it.

    Args:
        recipe: a packaged recipe's name, the path of a recipe file, a Recipe, or its data.
        backend: a packaged backend's name, the path of a backend file, a Backend, or its data.
        modules_to_not_convert: modules that stay in float, by the rules of transformers: the start of a path up to a
            dot, its end, or a regular expression. Once a model is quantized it lists the modules that were meant.
        strict: as for `fxquant.quantize`.
        padded_outputs: as for `fxquant.quantize`.
        example_inputs: keyword arguments of the model to capture it with. By default the first batch of a list of
            calibration, else the model's `dummy_inputs`, with the masks that its tokenizer gives.
        calibration: batches of keyword arguments, for recipes with static ranges.
        quant_method: "fxquant", as config.json has it.

    The last three are not saved.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe | dict[str, Any] = "dynamic",
        backend: str | Path | Backend | dict[str, Any] = "x86",
        modules_to_not_convert: Sequence[str] | None = None,
        strict: bool = False,
        padded_outputs: str = "exact",
        example_inputs: Mapping[str, Any] | None = None,
        calibration: Iterable[Mapping[str, Any]] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise ConfigError(f"quant_method = {quant_method!r}: an FxQuantConfig is of {METHOD!r}")
        check_padded_outputs(padded_outputs)
        skipped = [] if modules_to_not_convert is None else modules_to_not_convert
        if isinstance(skipped, str) or not all(isinstance(each, str) for each in skipped):
            raise ConfigError(f"modules_to_not_convert = {skipped!r}: expected a list of paths of modules")
        self.quant_method: Any = METHOD  # a text, as those of all quantizers that transformers does not know
        self.backend = _backend(backend)
        self.recipe = _recipe(recipe)
        self.modules_to_not_convert = list(skipped)
        self.strict = expect("strict", strict, bool)
        self.padded_outputs = padded_outputs
        self.example_inputs = example_inputs
        self.calibration = calibration
        load_backend(self.backend).recipe(self.recipe)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build the config of what config.json holds; `kwargs` that are no fields are returned where asked for."""
        known_keys(config_dict, (*_KEPT, "quant_method"))
        config = cls(**config_dict)
        unused = config.update(**kwargs)  # type: ignore[no-untyped-call]
        return (config, unused) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json keeps; `from_dict` reads it back."""
        data = {name: copy.deepcopy(getattr(self, name)) for name in _KEPT}
        plain = {name: value.to_dict() for name, value in data.items() if isinstance(value, Backend | Recipe)}
        return {"quant_method": METHOD, **data, **plain}

    def wish(self, skipped: Iterable[str]) -> Recipe:
        """Return the recipe with these modules, and those in them, in float."""
        overrides = [Override(path=path, quantize=False) for module in skipped for path in (module, f"{module}.*")]
        if isinstance(self.recipe, str):
            return Recipe(name=self.recipe, base=self.recipe, overrides=overrides)
        own = self.recipe
        return Recipe(name=own.name, base=own.base, specs=own.specs, overrides=(*overrides, *own.overrides))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the pairs of `to_dict`, as `dict(config)` wants them."""
        yield from self.to_dict().items()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy; batches and examples, which may be a generator, are shared: transformers copies at will."""
        return copy.copy(self)


def _backend(given: str | Path | Backend | dict[str, Any]) -> str | Backend:
    """Return a backend in a form that can be saved: a packaged one by its name, others whole."""
    if isinstance(given, dict):
        return read_backend(given, "quantization_config: backend")
    found = load_backend(given)
    return given if isinstance(given, str) and given == found.name else found


def _recipe(given: str | Path | Recipe | dict[str, Any]) -> str | Recipe:
    """Return a recipe in a form that can be saved: a packaged one by its name, others whole."""
    if isinstance(given, dict):
        return Recipe.from_dict(given, "quantization_config: recipe")
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".toml")):
        return Recipe.from_toml(given)
    return given
