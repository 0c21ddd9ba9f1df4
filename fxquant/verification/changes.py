"""What changed between the facts of two artifacts, layer by layer, and which of it is a regression."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fxquant.errors import DataError
from fxquant.verification.facts import Facts, LayerFacts

MATCHED = 0.5  # of the layers of two artifacts of one model at least


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """How much worse an artifact may be.

    `coverage_drop` in shares of multiply-accumulates, `scale_ratio` the largest new/old or old/new of a scale, `sqnr`
    the least SQNR of a layer in dB, `size_growth` a share of the old size.
    """

    coverage_drop: float = 0.0
    scale_ratio: float = 2.0
    sqnr: float = 10.0
    size_growth: float = 0.1

    def __post_init__(self) -> None:
        for name in ("coverage_drop", "size_growth"):
            if not getattr(self, name) >= 0:
                raise DataError(f"{name} = {getattr(self, name)}: expected a share, 0 or more")
        if not self.scale_ratio >= 1:
            raise DataError(f"scale_ratio = {self.scale_ratio}: expected 1 or more")
        if math.isnan(self.sqnr):
            raise DataError("sqnr is no number: expected decibels")


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """A layer of which more than the numbers changed; None for a layer that one of the artifacts lacks."""

    name: str
    old: LayerFacts | None
    new: LayerFacts | None

    @property
    def lost(self) -> bool:
        """Whether the layer was quantized, and is not any more."""
        return self.old is not None and not self.old.code and self.new is not None and bool(self.new.code)


@dataclass(frozen=True, kw_only=True)
class ScaleChange:
    """The scales of one role of a layer: the median of new/old, and the largest of that and its inverse.

    Both are None where there are more or fewer scales than there were.
    """

    name: str
    role: str
    median: float | None
    largest: float | None
    counts: tuple[int, int]


def check_same_model(old: Facts, new: Facts) -> None:
    """Raise `DataError` unless the two are of one model: most layers in common, and equal weights' shapes."""
    before, after = ({layer.key: layer for layer in each.layers} for each in (old, new))
    common = before.keys() & after.keys()
    for key in sorted(common):
        for role in before[key].roles.keys() & after[key].roles.keys():
            shapes = before[key].roles[role].shape, after[key].roles[role].shape
            if None not in shapes and shapes[0] != shapes[1]:
                one, other = (list(shape or ()) for shape in shapes)
                where = f"{before[key].name} has {role} {one} in one, {other} in the other"
                raise DataError(f"the artifacts are of different models: {where}")
    if len(common) < MATCHED * max(len(before), len(after), 1):
        count = f"{len(common)} layers are the same, of {len(before)} and {len(after)}"
        raise DataError(f"the artifacts are of different models: {count}; give two artifacts of one model")


def layer_changes(old: Facts, new: Facts) -> tuple[LayerChange, ...]:
    """Return the layers that are quantized in another way, by another kernel, or are in one of the two alone."""
    before, after = ({layer.key: layer for layer in each.layers} for each in (old, new))
    changes = (
        LayerChange(name=(after.get(key) or before[key]).name, old=before.get(key), new=after.get(key))
        for key in dict.fromkeys([*before, *after])
    )
    return tuple(each for each in changes if each.old is None or each.new is None or _way(each.old) != _way(each.new))


def _way(layer: LayerFacts) -> object:
    return layer.op, layer.kernel, layer.code, {name: role.scheme for name, role in layer.roles.items()}


def scale_changes(old: Facts, new: Facts) -> tuple[ScaleChange, ...]:
    """Return the scales that are not equal, the largest change first; those found at run time are none."""
    return tuple(sorted(_scale_changes(old, new), key=lambda each: -(each.largest or math.inf)))


def _scale_changes(old: Facts, new: Facts) -> Iterator[ScaleChange]:
    before = {layer.key: layer for layer in old.layers}
    for layer in new.layers:
        roles = before[layer.key].roles if layer.key in before else {}
        for name, role in layer.roles.items():
            older = roles[name].scales if name in roles else None
            if older is None or role.scales is None:
                continue
            ratios, counts = older.ratios(role.scales), (older.count, role.scales.count)
            if ratios is None:
                yield ScaleChange(name=layer.name, role=name, median=None, largest=None, counts=counts)
            elif (ratios != 1).any():
                largest = float(max(ratios.max(), (1 / ratios).max()))
                yield ScaleChange(
                    name=layer.name, role=name, median=float(ratios.median()), largest=largest, counts=counts
                )
