"""The manifest of an artifact: which format its files are in, their sizes and checksums. It is written last."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fxquant.errors import ArtifactError

FORMAT = "fxquant artifact"
VERSION = 1  # of everything in the folder; raised by any change that an older fxquant would misread
FILE = "manifest.json"
_DEEPEST = 100  # of objects and lists in a JSON file


def versions() -> dict[str, str]:
    """Return the versions of what writes an artifact, for messages and for people."""
    try:
        own = version("fxquant")
    except PackageNotFoundError:
        own = "unknown"
    return {"fxquant": own, "torch": str(torch.__version__)}


def write(folder: Path, names: list[str]) -> None:
    """Write the manifest of the files `names` in `folder`."""
    files = {name: {"size": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in names}
    write_json(folder / FILE, {"format": FORMAT, "version": VERSION, **versions(), "files": files}, indent=1)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name → size and checksum of the files of the artifact in `folder`.

    Raises:
        ArtifactError: there is no such folder, it is no artifact, or of a newer format.
    """
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist: expected the folder of an artifact, from fxquant.save")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: expected the folder of an artifact, from fxquant.save")
    if not (folder / FILE).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ArtifactError(f"{folder} is no artifact: it has no {FILE}, which fxquant.save writes; it holds {found}")
    data = read_json(folder / FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f'{folder / FILE} is not of an fxquant artifact: expected "format": "{FORMAT}"')
    check_version(folder / FILE, data)
    files = data.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ArtifactError(f"{folder / FILE} lists no files: it is damaged; save the artifact again")
    return files


def check_version(path: Path, data: dict[str, Any]) -> None:
    """Raise `ArtifactError` unless the format version that `data`, the contents of `path`, states can be read here."""
    found = data.get("version")
    if type(found) is not int or found < 1:
        raise ArtifactError(f"{path} states no format version: found {str(found)[:80]!r}, expected 1 to {VERSION}")
    if found > VERSION:
        writer = str(data.get("fxquant", "unknown"))[:40]
        raise ArtifactError(
            f"{path} has format version {found}, written by fxquant {writer}; fxquant {versions()['fxquant']} reads "
            f"versions up to {VERSION}: upgrade it, or save the model again with this one"
        )


def verify(folder: Path, files: dict[str, dict[str, Any]], name: str) -> Path:
    """Return the path of file `name`, or raise `ArtifactError` unless it is what the manifest says."""
    path, stated = folder / name, files.get(name)
    if stated is None or not path.is_file():
        where = "the folder" if stated else FILE
        raise ArtifactError(f"{path} is missing from {where}: the artifact is incomplete; copy or save it again")
    size = path.stat().st_size
    if size != stated.get("size"):
        advice = "it was truncated or altered; copy it again, or save it again"
        raise ArtifactError(f"{path} has {size} bytes, {FILE} says {str(stated.get('size'))[:40]}: {advice}")
    if _digest(path) != stated.get("sha256"):
        raise ArtifactError(f"{path} does not have the checksum that {FILE} states: it was altered; save it again")
    return path


def is_artifact(folder: Path) -> bool:
    """Say whether `folder` holds an artifact, of whatever version and in whatever state."""
    try:
        data = read_json(folder / FILE)
    except ArtifactError:
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def write_json(path: Path, data: Any, indent: int | None = None) -> None:
    """Write `data` as JSON, compact without `indent`."""
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(data, indent=indent, separators=separators) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file, or raise `ArtifactError` if it is missing, no JSON or absurdly nested."""
    try:
        data = json.loads(path.read_bytes())
        _check_depth(data)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON ({error}): it was truncated or altered; save it again") from None
    except RecursionError:
        raise ArtifactError(f"{path} nests values more than {_DEEPEST} deep: it is no file of an artifact") from None
    return data


def _check_depth(data: Any) -> None:
    """Raise RecursionError for data that is nested too deep; without recursion of its own."""
    level = [data]
    for _ in range(_DEEPEST):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise RecursionError


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
