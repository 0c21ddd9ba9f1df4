"""What Optimum's quantization of fx graphs was told of activations and weights, as changes to the specs of a recipe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from fxquant.config import expect, known_keys, known_name
from fxquant.errors import ConfigError

_DTYPES = {"qint8": "int8", "quint8": "uint8", "int8": "int8", "uint8": "uint8"}
_METHODS = ("minmax", "moving_average", "histogram")
# (dtype, symmetric) → range of integers → what a spec says of it
_RANGES: dict[tuple[str, bool], dict[tuple[int, int], dict[str, Any]]] = {
    ("int8", True): {(-127, 127): {"range": "restricted"}, (-128, 127): {"range": "full"}},
    ("int8", False): {(-128, 127): {}, (-8, 7): {"dtype": "int4"}},
    ("uint8", True): {(0, 255): {}},
    ("uint8", False): {(0, 255): {}, (0, 15): {"dtype": "uint4"}},
}


@dataclass(frozen=True)
class QConfigUnit:
    """How one kind of tensor is quantized.

    Args:
        dtype: "qint8" or "quint8", or the torch dtype of that name.
        symmetric: zero point in the middle.
        per_channel: a scale for each channel of `ch_axis`; else one for the tensor.
        ch_axis: the axis of the channels.
        quant_min: least integer; None, with `quant_max`, for what the dtype has.
        quant_max: greatest integer.
        calibration_method: "minmax", "moving_average" or "histogram", for ranges that are not found at run time.
        averaging_constant: weight of a new batch, with "moving_average".
        bins: of the histogram, a power of two, with "histogram".

    Raises:
        ConfigError: a value that no spec of fxquant can mean.
    """

    dtype: Any = "quint8"
    symmetric: bool = False
    per_channel: bool = False
    ch_axis: int = 0
    quant_min: int | None = None
    quant_max: int | None = None
    calibration_method: str = "minmax"
    averaging_constant: float = 0.01
    bins: int = 2048

    def __post_init__(self) -> None:
        name = str(self.dtype).removeprefix("torch.")
        known_name("dtype", name, _DTYPES, "dtype")
        known_name("calibration_method", self.calibration_method, _METHODS, "calibration method")
        object.__setattr__(self, "dtype", name)
        for key in ("symmetric", "per_channel"):
            expect(key, getattr(self, key), bool)
        self._range()

    def changes(self, *, dynamic: bool) -> dict[str, Any]:
        """Return the fields of a spec that this means; found at run time where `dynamic`, which takes no method."""
        dtype = _DTYPES[self.dtype]
        found: dict[str, Any] = {"dtype": dtype, "symmetric": self.symmetric, **self._range(), "dynamic": dynamic}
        found["granularity"] = "per-channel" if self.per_channel else "per-tensor"
        if self.per_channel:
            found["axis"] = self.ch_axis
        if not dynamic:
            found |= {"observer": self.calibration_method, "options": self._options()}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build it from data; `upsample_rate`, which was of another histogram, is left out."""
        known = {name: value for name, value in data.items() if name != "upsample_rate"}
        known_keys(known, cls.__dataclass_fields__)
        return cls(**known)

    def _options(self) -> dict[str, Any]:
        options: dict[str, dict[str, Any]] = {
            "minmax": {},
            "moving_average": {"averaging_constant": self.averaging_constant},
            "histogram": {"method": "mse", "bins": self.bins},
        }
        return options[self.calibration_method]

    def _range(self) -> dict[str, Any]:
        wanted = (self.quant_min, self.quant_max)
        if wanted == (None, None):
            return {}
        known = _RANGES[_DTYPES[self.dtype], self.symmetric]
        if wanted not in known:
            ranges = " or ".join(f"[{low}, {high}]" for low, high in known)
            kind = "symmetric" if self.symmetric else "affine"
            raise ConfigError(
                f"quant_min, quant_max = {wanted}: {kind} {self.dtype} is {ranges} here; leave both out for what the "
                "backend has. Narrower ranges are for kernels that saturate, which those of fxquant do not"
            )
        return known[wanted]


@dataclass(frozen=True)
class QConfig:
    """How activations and weights are quantized."""

    activation: QConfigUnit = field(default_factory=QConfigUnit)
    weight: QConfigUnit = field(default_factory=lambda: QConfigUnit("qint8", symmetric=True, per_channel=True))

    def specs(self, approach: str) -> dict[str, Any]:
        """Return the changes to the specs of a recipe.

        Args:
            approach: "static"; "dynamic", where activations get a scale per token; or "weight-only".
        """
        weight = self.weight.changes(dynamic=False)
        if approach == "weight-only":
            return {"weight": weight}
        activation = self.activation.changes(dynamic=approach == "dynamic")
        if approach == "dynamic":
            activation["granularity"] = "per-token"
            activation.pop("axis", None)
        return {"activation": activation, "weight": weight}

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON-able data; `from_dict` reads it back."""
        return {"activation": self.activation.to_dict(), "weight": self.weight.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build it from data."""
        known_keys(data, ("activation", "weight"))
        return cls(**{name: QConfigUnit.from_dict(expect(name, unit, dict)) for name, unit in data.items()})
