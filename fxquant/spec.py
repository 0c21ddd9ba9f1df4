"""`QuantSpec` says how a tensor is to be quantized; `QParams` holds the numbers that came of it."""

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import torch

from fxquant.errors import ConfigError, suggest


class Format(NamedTuple):
    """A format of 8 bits or another: the torch dtype that holds a value and the whole value range."""

    torch_dtype: torch.dtype
    minimum: int
    maximum: int

    @property
    def signed(self) -> bool:
        return self.minimum < 0

    @property
    def floating(self) -> bool:
        """Whether values are floating-point numbers, which are scaled but have no zero point and no equal steps."""
        return self.torch_dtype.is_floating_point

    @property
    def packed(self) -> bool:
        """Whether constants of this format are stored two to a byte."""
        return self.maximum - self.minimum < 16


FORMATS: dict[str, Format] = {
    "int8": Format(torch.int8, -128, 127),
    "uint8": Format(torch.uint8, 0, 255),
    "int4": Format(torch.int8, -8, 7),
    "uint4": Format(torch.uint8, 0, 15),
    "int32": Format(torch.int32, -(2**31), 2**31 - 1),
    "float8_e4m3fn": Format(torch.float8_e4m3fn, -448, 448),
}
GRANULARITIES = ("per-tensor", "per-channel", "per-token", "per-sample", "per-group")
# Scales of what one call brings, which no other call has.
AT_RUN_TIME = ("per-token", "per-sample")
GROUP_SIZE = 32  # where a per-group spec does not say
RANGES = ("restricted", "full")


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How one tensor is quantized: x = S·(q − Z).

    Invariants:
        - `dtype` is a key of `FORMATS`; `granularity` is one of `GRANULARITIES`.
        - `axis` is given for per-channel only: the axis that keeps a scale per index (may be negative).
        - per-token (one scale for each slice along the last axis) and per-sample (one for each index of the first, as
          for each image of a batch) exist at run time only: `dynamic` is true.
        - per-group (one scale for every `group_size` values along the last axis; a last group may be shorter) is for
          constants: `dynamic` is false. `group_size` is given for per-group only.
        - float8_e4m3fn, 4 bits of exponent and 3 of mantissa up to 448, is `symmetric`: q = x/S, S = max/448.
        - `range` matters to symmetric signed integers: "restricted" uses [-127, 127] with S = max/127,
          "full" uses [-128, 127] with S = 2·max/255; in int4 [-7, 7] with max/7 and [-8, 7] with 2·max/15.
        - `observer` finds the range of a static tensor; `options` are its keyword arguments.
    """

    dtype: str = "int8"
    granularity: str = "per-tensor"
    axis: int | None = None
    group_size: int | None = None
    symmetric: bool = False
    dynamic: bool = False
    range: str = "restricted"
    observer: str = "minmax"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, FORMATS)
        _check_choice("granularity", self.granularity, GRANULARITIES)
        _check_choice("range", self.range, RANGES)
        if self.granularity == "per-channel" and self.axis is None:
            object.__setattr__(self, "axis", 0)
        if self.granularity != "per-channel" and self.axis is not None:
            raise ConfigError(f"axis = {self.axis} has a meaning for per-channel only, not for {self.granularity}")
        if self.granularity in AT_RUN_TIME and not self.dynamic:
            text = f"{self.granularity} scales exist at run time only: set dynamic = true, or use per-tensor"
            raise ConfigError(text)
        if self.format.floating and not self.symmetric:
            raise ConfigError(f"{self.dtype} has no zero point: set symmetric = true")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.granularity != "per-group":
            if self.group_size is not None:
                raise ConfigError(
                    f"group_size = {self.group_size} has a meaning for per-group only, not for {self.granularity}"
                )
            return
        if self.dynamic:
            raise ConfigError("per-group scales are those of constants: set dynamic = false, or use per-token")
        if self.group_size is None:
            object.__setattr__(self, "group_size", GROUP_SIZE)
        elif self.group_size < 1:
            raise ConfigError(f"group_size = {self.group_size}: expected a positive integer")

    @property
    def format(self) -> Format:
        return FORMATS[self.dtype]

    @property
    def qmin(self) -> int:
        """Smallest integer this spec uses: −127 rather than −128 for restricted symmetric int8."""
        narrow = not self.format.floating and self.symmetric and self.format.signed and self.range == "restricted"
        return self.format.minimum + 1 if narrow else self.format.minimum

    @property
    def qmax(self) -> int:
        return self.format.maximum

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON-able data, without a `group_size` where it has none; `from_dict` reads it back."""
        data = {**asdict(self), "options": dict(self.options)}
        return data if self.group_size is not None else {key: data[key] for key in data if key != "group_size"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build a spec from data, raising `ConfigError` for an unknown key or a value of the wrong type."""
        known: dict[str, type] = {f.name: type(f.default) for f in fields(cls)}
        number = (int, type(None))
        special: dict[str, tuple[type, ...]] = {"axis": number, "group_size": number, "options": (dict, tuple)}
        for key, value in data.items():
            if key not in known:
                raise ConfigError(f"unknown key {key!r}: {suggest(key, known)}")
            expected = special.get(key, (known[key],))
            if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
                raise ConfigError(f"{key} = {value!r}: expected {expected[0].__name__}, got {type(value).__name__}")
        options = tuple(sorted(dict(data.get("options", ())).items()))
        return cls(**{**data, "options": options})


def _check_choice(key: str, value: object, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{key} = {value!r} is not known: {suggest(value, known)}")


class QParams(NamedTuple):
    """The scale and zero point of a tensor, x = scale·(q − zero_point).

    Shapes: `scale` and `zero_point` are () per tensor, (channels,) per channel along `axis`, (…, 1) per token and
    (samples, 1, …) per sample, where they broadcast against the tensor (`axis` is None), and (…, groups) per group, the
    last axis of the tensor being cut into groups of `group_size` values. `scale` is float32, `zero_point` int32.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None = None
    group_size: int | None = None
