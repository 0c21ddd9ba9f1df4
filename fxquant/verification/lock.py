"""Lock files: the facts of an artifact as JSON, to be checked in beside code, so that `diff` has an older one.

They need neither the artifact nor its weights, and hold of many scales some quantiles.
"""

from pathlib import Path
from typing import Any

from fxquant import manifest
from fxquant.errors import ArtifactError
from fxquant.verification.facts import Facts, LayerFacts, RoleFacts, Scales

FORMAT, VERSION = "fxquant lock", 1


def write_lock(facts: Facts, path: str | Path) -> None:
    """Write a lock file; it is there whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    place = Path(path)
    layers = [{**vars(layer), "roles": {n: _plain(role) for n, role in layer.roles.items()}} for layer in facts.layers]
    data = {"format": FORMAT, "version": VERSION, **manifest.versions(), **vars(facts), "layers": layers}
    partial = place.with_name(f"{place.name}.partial")
    try:
        manifest.write_json(partial, data, indent=1)
        partial.replace(place)
    except OSError as error:
        raise ArtifactError(f"{place} cannot be written: {error.strerror}") from None


def _plain(role: RoleFacts) -> dict[str, Any]:
    scales = None if role.scales is None else {"count": role.scales.count, "values": role.scales.values}
    return {"scheme": role.scheme, "shape": role.shape, "scales": scales}


def read_lock(path: str | Path) -> Facts:
    """Read a lock file.

    Raises:
        ArtifactError: it is missing, damaged, of a newer format, or no lock file.
    """
    data = manifest.read_json(Path(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f'{path} is neither an artifact nor a lock file: expected "format": "{FORMAT}"')
    if data.get("version") != VERSION:
        raise ArtifactError(f"{path} has format version {str(data.get('version'))[:40]}; this fxquant reads {VERSION}")
    try:
        layers = tuple(_layer(each) for each in data["layers"])
        coverage = {str(name): float(share) for name, share in data["coverage"].items()}
        return Facts(backend=str(data["backend"]), size=int(data["size"]), coverage=coverage, layers=layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is a damaged lock file ({type(error).__name__}: {error}): write it again"
        ) from None


def _layer(data: dict[str, Any]) -> LayerFacts:
    roles = {
        name: RoleFacts(
            scheme=str(each["scheme"]),
            shape=None if each["shape"] is None else tuple(int(size) for size in each["shape"]),
            scales=None if each["scales"] is None else _scales(**each["scales"]),
        )
        for name, each in data["roles"].items()
    }
    return LayerFacts(**{**data, "roles": roles})


def _scales(count: int, values: list[float]) -> Scales:
    return Scales(int(count), tuple(float(each) for each in values))
