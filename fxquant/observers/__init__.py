"""Observers find the range of a tensor from the values that go by; one idea a file."""

from fxquant.observers import histogram_observer, least_squares, minmax, moving_average, smooth
from fxquant.observers.base import OBSERVERS, Observation, ObservationError, Observer, create
from fxquant.observers.options import Option

__all__ = [
    "OBSERVERS",
    "Observation",
    "ObservationError",
    "Observer",
    "Option",
    "create",
    "histogram_observer",
    "least_squares",
    "minmax",
    "moving_average",
    "smooth",
]
