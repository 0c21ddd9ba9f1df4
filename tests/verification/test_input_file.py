"""Inputs from files: by name, integers of any width, and each way in which a file is wrong."""

import numpy as np
import pytest
import torch
from captured import captured
from safetensors.torch import save_file

from fxquant.errors import DataError, InputError
from fxquant.verification.input_file import read_inputs

IDS, MASK = np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((2, 3), dtype=np.int32)


@pytest.fixture(scope="module")
def graphs():
    return {"": captured("distilbert")[2]}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_are_read_in_the_order_of_the_graph(graphs, tmp_path, suffix):
    path = tmp_path / f"inputs.{suffix}"
    if suffix == "npz":
        np.savez(path, attention_mask=MASK, input_ids=IDS)
    else:
        save_file({"attention_mask": torch.from_numpy(MASK), "input_ids": torch.from_numpy(IDS)}, path)
    ids, mask = read_inputs(path, graphs)[""]
    assert (ids.dtype, ids.tolist(), mask.tolist()) == (torch.int64, IDS.tolist(), MASK.tolist())


def test_graphs_of_a_program_have_their_own(graphs, tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, **{f"{graph}.{name}": IDS for graph in "ab" for name in ("input_ids", "attention_mask")})
    found = read_inputs(path, {"a": graphs[""], "b": graphs[""]})
    assert [len(each) for each in found.values()] == [2, 2]


BAD = {
    "unknown": ({"input_ids": IDS, "attention_mask": MASK, "mask": MASK}, "has an array 'mask', which is no input"),
    "missing": ({"input_ids": IDS}, "lacks attention_mask: expected an array for each of input_ids, attention_mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_names(graphs, tmp_path, name):
    arrays, message = BAD[name]
    np.savez(tmp_path / "inputs.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_inputs(tmp_path / "inputs.npz", graphs)


def test_wrong_shapes_and_types_name_the_input(graphs, tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, input_ids=IDS, attention_mask=MASK[:, :2])
    with pytest.raises(InputError, match=r"inputs\.npz: .*attention_mask"):
        read_inputs(path, graphs)
    np.savez(path, input_ids=IDS.astype(np.float32), attention_mask=MASK)
    with pytest.raises(InputError, match=r"inputs\.npz: .*input_ids"):
        read_inputs(path, graphs)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_damaged_files(graphs, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no arrays at all")
    with pytest.raises(DataError, match=r"cannot be read as .*: it is damaged, or of another kind"):
        read_inputs(path, graphs)


def test_pickled_arrays_are_not_loaded(graphs, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, input_ids=np.array([{}], dtype=object), attention_mask=MASK)
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_inputs(path, graphs)


def test_other_files(graphs, tmp_path):
    with pytest.raises(DataError, match=r"expected a file that ends in \.npz or \.safetensors"):
        read_inputs(tmp_path / "x.pt", graphs)
    with pytest.raises(DataError, match="there is no such file"):
        read_inputs(tmp_path / "x.npz", graphs)
