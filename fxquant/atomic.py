"""Writing a folder as a whole: whoever looks, or kills the writer, finds the old contents or the new, never a mixture.

The new contents are written next to the folder, flushed to the disk, and renamed. Where a folder is replaced, two
renames are needed; a writer killed between them leaves the old contents at `previous(folder)`, where `find` sees them
and from where the next `replacing` puts them back.
"""

import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ABANDONED = 3600.0  # seconds without a write after which a partial folder belongs to a writer that is gone
_SHOWN = 5  # names in a message


def previous(folder: Path) -> Path:
    """Return where the contents of `folder` lie while they are being replaced."""
    return folder.parent / f".{folder.name}.previous"


def find(folder: Path) -> Path:
    """Return where the contents of `folder` are: there, unless a writer was killed while it replaced them."""
    return folder if folder.exists() or not previous(folder).exists() else previous(folder)


def occupants(
    folder: Path, verb: str, kind: str, recognize: Callable[[Path], bool], refusal: type[Exception]
) -> list[Path]:
    """Return what lies in a folder that `verb` may write to, in order: one that is new, empty, or holds such a `kind`.

    Args:
        folder: resolved, as for `replacing`.
        verb: what writes there, for messages, as "save".
        kind: what it writes, as "artifact".
        recognize: says whether a folder holds that.
        refusal: what is raised where there is a file, or a folder of other things.
    """
    folder = find(folder)
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise refusal(f"{folder} is a file: {verb} takes a folder that is new, empty, or holds an {kind}")
    inside = sorted(folder.iterdir())
    if inside and not recognize(folder):
        names = ", ".join(path.name for path in inside[:_SHOWN]) + (", …" if len(inside) > _SHOWN else "")
        raise refusal(f"{folder} holds {names} and no {kind}: {verb} takes a folder that is new or empty")
    return inside


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder that takes the place of `folder` when the block ends, and vanishes if it raises.

    `folder` may exist or not; its parents are made. `folder` must be resolved: a link would be replaced itself.

    Raises:
        OSError: the disk is full, a permission is missing, …; `folder` is then what it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    partial = _partial(folder)
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"


def _tidy(folder: Path) -> None:
    """Put right what killed writers of this folder left behind."""
    old = previous(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    elif old.exists():
        _remove(old, folder)
    now = time.time()
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        newest = max((path.lstat().st_mtime for path in [partial, *partial.rglob("*")]), default=now)
        if now - newest > _ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, folder: Path) -> None:
    """Let `partial` take the place of `folder`."""
    old = previous(folder)
    replaces = folder.exists()
    if replaces:
        folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        if replaces:
            old.rename(folder)
        raise
    _flush(folder.parent)
    if replaces:
        _remove(old, folder)


def _remove(old: Path, folder: Path) -> None:
    """Remove the former contents; under another name, for what lies at `previous` must always be whole."""
    doomed = _partial(folder)
    old.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    if path.is_symlink() or (path.is_dir() and not hasattr(os, "O_DIRECTORY")):  # Windows cannot flush a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
