"""`Observer`: a module that watches a tensor go by and turns the range it saw into QParams.

What every observer shares lives here: the checks of its spec, of its options and of the data, the counting of
batches, merging and the step from a range to QParams. How a range is found is the subclass's one idea.
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fxquant.errors import CalibrationError, ConfigError
from fxquant.numerics import qparams_from_range, value_range
from fxquant.observers.options import Option, read_options
from fxquant.registry import Registry
from fxquant.spec import AT_RUN_TIME, QParams, QuantSpec


class ObservationError(CalibrationError):
    """Data that an observer cannot use; `observer` says which one met it."""

    def __init__(self, message: str, observer: "Observer") -> None:
        super().__init__(message)
        self.observer = observer


class Observation(NamedTuple):
    """One batch as an observer sees it: the tensor, and its float32 minimum and maximum.

    Shapes of `low` and `high`: () per tensor, (channels,) per channel, x.shape[:-1] + (1,) per token.
    """

    x: Tensor
    low: Tensor
    high: Tensor


class Observer(nn.Module):
    """Base of the observers.

    State is in plain buffers, so `state_dict`, DDP and resuming work: `batches` () int64 counts the non-empty tensors
    seen, `low` and `high` hold the range as in `Observation` and are empty before the first one. Memory does not
    depend on the number of batches, and no batch is kept.

    Raises:
        ConfigError: the spec asks for a granularity that the observer has not, or for an unknown or wrong option.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    GRANULARITIES: ClassVar[tuple[str, ...]] = ("per-tensor", "per-channel")

    batches: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.granularity not in self.GRANULARITIES:
            known = " or ".join(self.GRANULARITIES)
            raise ConfigError(
                f"observer {spec.observer!r} keeps {known} ranges, not {spec.granularity}: "
                f"use one of these, or observer = 'minmax'"
            )
        self.options = read_options(spec, self.OPTIONS)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("low", torch.empty(0))
        self.register_buffer("high", torch.empty(0))

    @property
    def observed(self) -> bool:
        """Whether the observer has seen any value."""
        return bool(self.batches > 0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` (any shape and real dtype) and return it unchanged; an empty tensor shows nothing.

        Raises:
            CalibrationError: `x` holds NaN or Inf, or has not the channels that earlier batches had.
        """
        if x.numel():
            if self.low.device != x.device:
                self.to(x.device)
            self._observe(self._measure(x.detach()))
            self.batches += 1
        return x

    def _measure(self, x: Tensor) -> Observation:
        axis = self.spec.axis
        if axis is not None and not -x.ndim <= axis < x.ndim:
            raise ObservationError(f"a per-channel range along axis {axis} of a tensor of shape {list(x.shape)}", self)
        low, high = (bound.float() for bound in value_range(x, self.spec))
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            values = x.float()
            nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
            raise ObservationError(
                f"{nans} NaN and {infinities} Inf among the {x.numel()} values of a tensor of shape {list(x.shape)}",
                self,
            )
        if axis is not None and self.observed and low.shape != self.low.shape:
            raise ObservationError(
                f"{len(low)} channels along axis {axis} of a tensor of shape {list(x.shape)}, "
                f"where earlier batches had {len(self.low)}",
                self,
            )
        return Observation(x, low, high)

    @abstractmethod
    def _observe(self, seen: Observation) -> None:
        """Take one batch into the state; `observed` is still false for the first."""

    @abstractmethod
    def _combine(self, other: Any) -> None:
        """Take the state of an observer of the same class and spec into this one; both have observed."""

    def _range(self) -> tuple[Tensor, Tensor]:
        """Return the range to quantize; by default the one in `low` and `high`."""
        return self.low, self.high

    @torch.no_grad()
    def merge(self, other: "Observer") -> None:
        """Take in what `other`, an observer of the same spec, has seen; the order of merging has no effect.

        Raises:
            ConfigError: the two differ in class or spec, or keep ranges of tokens or samples, which are of one batch.
            CalibrationError: the two saw tensors with different numbers of channels.
        """
        if type(other) is not type(self) or other.spec != self.spec:
            raise ConfigError(f"observers of one spec can be merged, not {self.spec} and {other.spec}")
        if self.spec.granularity in AT_RUN_TIME:
            text = (
                f"{self.spec.granularity} ranges belong to one batch: there is nothing to merge; merge static observers"
            )
            raise ConfigError(text)
        if not other.observed:
            return
        if not self.observed:
            self.load_state_dict(other.state_dict())
            return
        if self.low.shape != other.low.shape:
            channels = f"{self.low.numel()} and {other.low.numel()}"
            raise ObservationError(f"observers of {channels} channels cannot be merged", self)
        if other.low.device != self.low.device:
            other = copy.deepcopy(other).to(self.low.device)
        self._combine(other)
        self.batches += other.batches

    def check(self) -> None:
        """Raise `CalibrationError` if `qparams` would: nothing was seen, or per tensor nothing but zeros."""
        if not self.observed:
            raise ObservationError("the observer has seen no data: run at least one batch through it", self)
        if self.spec.granularity == "per-tensor" and not bool(self.low.any() | self.high.any()):
            raise ObservationError(
                f"the range is zero: the {int(self.batches)} batches held nothing but zeros here; "
                f"calibrate with data that uses this tensor, or leave it in float",
                self,
            )

    @torch.no_grad()
    def qparams(self) -> QParams:
        """Return the QParams for what was seen; a channel or token of zeros gets S = 1.

        Raises:
            CalibrationError: nothing was seen, or a per-tensor range is zero.
        """
        self.check()
        low, high = self._range()
        return qparams_from_range(low, high, self.spec, self.spec.axis)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The number of channels is known from the first batch on, so buffers take the first size that was saved.
        for name, own in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor) or own is None:
                continue
            if self.spec.granularity in (*AT_RUN_TIME, "per-group") or saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


OBSERVERS: Registry[type[Observer]] = Registry("observer")


def create(spec: QuantSpec) -> Observer:
    """Return a new observer for `spec`.

    Raises:
        ConfigError: the observer is not known, has not the spec's granularity, or an option is unknown or wrong.
    """
    return OBSERVERS[spec.observer](spec)
