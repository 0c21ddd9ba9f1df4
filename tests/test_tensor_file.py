import json
import struct

import pytest
import torch
from torch import nn

from fxquant import tensor_file
from fxquant.errors import ArtifactError


def round_trip(path, named):
    tables, tensors = tensor_file.collect(named)
    tensor_file.write(path, tensors)
    return tensor_file.read(path, tables, {graph: list(group) for graph, group in named.items()})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, float("nan"), -0.0, float("inf")]),
        torch.tensor(2.0),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.arange(6, dtype=torch.int8).reshape(2, 3).t(),
        torch.arange(6, dtype=torch.uint8)[::2],
        torch.arange(6, dtype=torch.int64)[2:4],
        torch.ones(1).expand(3, 2),
        torch.randn(4).to(torch.bfloat16),
        torch.randn(4).half(),
        torch.randn(2, dtype=torch.float64),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_tensors_survive_to_the_bit(tmp_path, tensor):
    back = round_trip(tmp_path / "t", {"forward": {"a.b": tensor}})["forward"]["a.b"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert (
        back.contiguous().view(-1).view(torch.uint8).tolist() == tensor.contiguous().view(-1).view(torch.uint8).tolist()
    )


def test_a_tensor_is_stored_once_and_read_as_one_object(tmp_path):
    weight = torch.randn(100, 100)
    named = {"encoder": {"shared": weight, "tied": weight.detach()}, "step": {"head": weight, "other": torch.ones(1)}}
    back = round_trip(tmp_path / "t", named)
    assert back["encoder"]["shared"] is back["encoder"]["tied"] is back["step"]["head"]
    assert (tmp_path / "t").stat().st_size < 41_000


def test_one_name_in_two_graphs_may_be_two_tensors(tmp_path):
    back = round_trip(tmp_path / "t", {"a": {"w": torch.zeros(1)}, "b": {"w": torch.ones(1)}})
    assert (back["a"]["w"], back["b"]["w"]) == (0, 1)


def test_views_of_one_memory_are_stored_apart(tmp_path):
    merged = torch.arange(6.0)
    back = round_trip(tmp_path / "t", {"a": {"left": merged[:3], "right": merged[3:], "all": merged}})["a"]
    assert back["left"].tolist() == [0, 1, 2]
    assert back["right"].tolist() == [3, 4, 5]
    assert back["all"].tolist() == [0, 1, 2, 3, 4, 5]


def test_parameters_stay_parameters_on_the_memory_of_their_buffers(tmp_path):
    weight = nn.Parameter(torch.randn(3))
    back = round_trip(tmp_path / "t", {"a": {"p": weight, "b": weight.detach(), "q": weight}})["a"]
    assert isinstance(back["p"], nn.Parameter)
    assert not isinstance(back["b"], nn.Parameter)
    assert back["p"] is back["q"]
    assert back["p"].data_ptr() == back["b"].data_ptr()


def test_what_is_read_does_not_depend_on_the_file(tmp_path):
    back = round_trip(tmp_path / "t", {"a": {"w": torch.ones(5000)}})["a"]["w"]
    (tmp_path / "t").write_bytes(b"\0" * (tmp_path / "t").stat().st_size)
    assert back.sum() == 5000
    assert back.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.empty(2, device="meta"), "meta"), (torch.eye(2).to_sparse(), "sparse_coo")],
    ids=["meta", "sparse"],
)
def test_tensors_without_plain_values_are_refused(tensor, kind):
    with pytest.raises(ArtifactError, match=rf"tensor 'w' \({kind}\) cannot be saved: expected a dense tensor"):
        tensor_file.collect({"a": {"w": tensor}})


def test_a_dtype_that_the_format_lacks_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"a dtype among torch.complex128 cannot be saved"):
        tensor_file.write(tmp_path / "t", {"w": torch.zeros(2, dtype=torch.complex128)})


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        tensor_file.write(tmp_path / "missing" / "t", {"w": torch.zeros(2)})


GOOD = {"a": {"w": {"key": "w", "parameter": False}}}


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (None, "reads the tensor 'w', and does not say where it is"),
        ({}, "does not say where it is"),
        ({"a": []}, "does not say where it is"),
        ({"a": {"w": "w"}}, "does not say where it is"),
        ({"a": {"w": {"key": "../../etc/passwd", "parameter": False}}}, "which the tensor file does not hold"),
        ({"a": {"w": {"key": ["w"], "parameter": False}}}, "which the tensor file does not hold"),
        ({"a": {"w": {"key": "w", "parameter": 1}}}, "which the tensor file does not hold"),
    ],
    ids=str,
)
def test_a_wrong_table_is_refused(tmp_path, tables, text):
    tensor_file.write(tmp_path / "t", {"w": torch.zeros(2)})
    with pytest.raises(ArtifactError, match=text):
        tensor_file.read(tmp_path / "t", tables, {"a": ["w"]})


def header(entry, length=None):
    text = json.dumps({"w": entry}).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",  # how a pickle begins
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, length=2**63),
        header({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}),
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}),
        header({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}),
        header({"dtype": "pickle", "shape": [2], "data_offsets": [0, 8]}),
    ],
    ids=["empty", "pickle", "long-header", "huge", "beyond", "negative", "dtype"],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ArtifactError, match="t cannot be read"):
        tensor_file.read(tmp_path / "t", GOOD, {"a": ["w"]})
