"""The state in which a model is exported; all of it is put back afterwards."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn


@contextmanager
def inference(model: nn.Module, attention: str | None = None) -> Iterator[None]:
    """Put the model into eval mode, outside autograd, without a cache, and with this attention implementation."""
    training = [(module, module.training) for module in model.modules()]
    changes: list[tuple[Any, str, Any]] = [(config, "use_cache", False) for config in configs(model, "use_cache")]
    if attention is not None:
        changes += [(config, "_attn_implementation", attention) for config in configs(model, "_attn_implementation")]
    before = [(config, name, getattr(config, name)) for config, name, _ in changes]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        _evaluate(model)
        for config, name, value in changes:
            setattr(config, name, value)
        with torch.no_grad():
            yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)
        for module, flag in training:
            module.training = flag
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # the module of an exported program, whose graph knows one mode only
        for module in model.modules():
            module.training = False


def configs(model: nn.Module, attribute: str) -> list[Any]:
    """Return the distinct configurations of the model and its modules that have an attribute of this name."""
    found = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    return [config for config in found.values() if hasattr(config, attribute)]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep back what torch logs, warns and writes while an export fails: the error that follows says it once."""
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = {handler for name in known for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(_drop)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False
