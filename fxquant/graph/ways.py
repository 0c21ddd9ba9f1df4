"""The ways to export a whole model, in the order in which they are tried."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxquant.graph.modes import configs

# The version of transformers from which its exporters, which are experimental, have the preparations used here.
EXPORTERS = (5, 23)


@dataclass(frozen=True)
class Way:
    """A way to export: `attention` is the implementation to use (None: the model's own), `preparation` surrounds it."""

    name: str
    attention: str | None = None
    preparation: Callable[[nn.Module], AbstractContextManager[Any]] = lambda _: nullcontext()


OWN_ATTENTION = Way("own attention")


def ways_of(model: nn.Module) -> tuple[Way, ...]:
    """Return the ways that a model has: another attention or transformers' preparations only where it knows them."""
    own = {config._attn_implementation for config in configs(model, "_attn_implementation")}
    ways = [OWN_ATTENTION]
    if not own <= {"eager", None}:
        ways.append(Way("eager attention", "eager"))
    if own and _exporters() is not None:
        ways.append(Way("transformers.exporters", None, _prepared))
    return tuple(ways)


def _exporters() -> tuple[Any, Any] | None:
    """Return the modules of transformers that prepare models for an export; None where they are not known to."""
    try:
        version = importlib.import_module("transformers").__version__.split(".")
        if (int(version[0]), int(version[1])) < EXPORTERS:
            return None
        names = ("utils", "exporter_dynamo")
        utils, dynamo = (importlib.import_module(f"transformers.exporters.{name}") for name in names)
    except (ImportError, AttributeError, ValueError, RuntimeError):  # experimental: any of it may move
        return None
    found = hasattr(utils, "apply_patches") and hasattr(dynamo, "reset_model_state")
    return (utils, dynamo) if found else None


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    """Replace what transformers knows not to be exportable, and forget what forward remembers of earlier calls."""
    found = _exporters()
    with ExitStack() as stack:
        if found is not None:
            utils, dynamo = found
            stack.enter_context(utils.apply_patches("dynamo"))
            stack.enter_context(dynamo.reset_model_state(model))
        yield
