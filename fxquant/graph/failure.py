"""Where a model failed: the innermost module and the line of the model's code that an exception passed through."""

import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_STDLIB = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Failure:
    """An exception, the path of the innermost module that was running ("" for the model itself), and the line."""

    path: str
    line: str
    reason: str

    @property
    def text(self) -> str:
        """The reason and its place, in one line."""
        inside = f" in module {self.path!r}" if self.path else ""
        return f"{self.reason}{inside}{f' at {self.line}' if self.line else ''}"


def locate(error: BaseException, model: nn.Module) -> Failure:
    """Return where in `model` the exception arose; `line` is "" where it came from none of the model's lines."""
    names = {id(module): name for name, module in model.named_modules()}
    path = line = ""
    for frame, number in _frames(error):
        path = names.get(id(frame.f_locals.get("self")), path)
        if _is_model_code(frame.f_code.co_filename):
            line = f"{Path(frame.f_code.co_filename).name}:{number}"
    words = str(error).strip() or "no message"
    return Failure(path, line, f"{type(error).__name__}: {words.splitlines()[0].rstrip(' .')}")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    yield from traceback.walk_tb(error.__traceback__)
    cause = error.__cause__
    if cause is not None:
        yield from _frames(cause)


def _is_model_code(file: str) -> bool:
    if file.startswith("<") or file.startswith((_OURS, _TORCH)):
        return False
    return "site-packages" in file or not file.startswith(_STDLIB)
