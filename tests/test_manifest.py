import json

import pytest

from fxquant import manifest
from fxquant.errors import ArtifactError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").write_bytes(b"12345")
    manifest.write(tmp_path, ["data"])
    return tmp_path


def rewrite(folder, **changes):
    data = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps({**data, **changes}))


def test_a_manifest_states_size_and_sha256(folder):
    files = manifest.read(folder)
    # sha256sum of the five characters 12345
    digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert files == {"data": {"size": 5, "sha256": digest}}
    assert manifest.verify(folder, files, "data") == folder / "data"
    assert manifest.is_artifact(folder)


def test_a_truncated_file_is_named(folder):
    (folder / "data").write_bytes(b"123")
    with pytest.raises(ArtifactError, match=r"data has 3 bytes, manifest.json says 5: it was truncated"):
        manifest.verify(folder, manifest.read(folder), "data")


def test_an_altered_file_is_named(folder):
    (folder / "data").write_bytes(b"12346")
    with pytest.raises(ArtifactError, match=r"data does not have the checksum that manifest.json states"):
        manifest.verify(folder, manifest.read(folder), "data")


def test_a_missing_file_is_named(folder):
    files = manifest.read(folder)
    (folder / "data").unlink()
    with pytest.raises(ArtifactError, match=r"data is missing from the folder"):
        manifest.verify(folder, files, "data")
    with pytest.raises(ArtifactError, match=r"other is missing from manifest.json"):
        manifest.verify(folder, files, "other")


def test_a_newer_format_says_who_wrote_it_and_what_to_do(folder):
    rewrite(folder, version=2, fxquant="9.9")
    with pytest.raises(ArtifactError, match=r"has format version 2, written by fxquant 9.9; .* up to 1: upgrade"):
        manifest.read(folder)
    assert manifest.is_artifact(folder)


@pytest.mark.parametrize("version", [None, "1", True, 0, -1, 1.0, [1]], ids=str)
def test_a_version_is_a_positive_integer(folder, version):
    rewrite(folder, version=version)
    with pytest.raises(ArtifactError, match="states no format version"):
        manifest.read(folder)


@pytest.mark.parametrize("files", [None, [], {"data": 5}], ids=str)
def test_a_manifest_without_files_is_damaged(folder, files):
    rewrite(folder, files=files)
    with pytest.raises(ArtifactError, match="lists no files: it is damaged"):
        manifest.read(folder)


def test_what_is_no_artifact_says_what_it_is(folder, tmp_path):
    with pytest.raises(ArtifactError, match="nowhere does not exist: expected the folder of an artifact"):
        manifest.read(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="data is a file: expected the folder"):
        manifest.read(folder / "data")
    (folder / manifest.FILE).unlink()
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest.json, .* it holds data"):
        manifest.read(folder)
    assert not manifest.is_artifact(folder)


def test_a_foreign_manifest_is_no_artifact(folder):
    (folder / manifest.FILE).write_text('{"name": "a browser extension", "version": 3}')
    with pytest.raises(ArtifactError, match="is not of an fxquant artifact"):
        manifest.read(folder)
    assert not manifest.is_artifact(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"format": "fxq', "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe{", "is no JSON"),
        (b"9" * 5000, "is no JSON"),
        (b"[" * 100_000, "nests values more than 100 deep"),
        (b"[" * 101 + b"]" * 101, "nests values more than 100 deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nests values more than 100 deep"),
    ],
    ids=["cut", "empty", "bytes", "number", "unclosed", "list", "object"],
)
def test_bad_json_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=rf"x.json {message}"):
        manifest.read_json(tmp_path / "x.json")


def test_json_may_nest_100_deep(tmp_path):
    (tmp_path / "x.json").write_bytes(b"[" * 99 + b"]" * 99)
    assert manifest.read_json(tmp_path / "x.json")


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"x.json cannot be read: No such file"):
        manifest.read_json(tmp_path / "x.json")
