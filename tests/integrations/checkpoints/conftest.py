"""Checkpoints and captured models that several files of tests read."""

import foreign
import pytest
import torch
import transformers

import fxquant as fxq


@pytest.fixture(scope="package", autouse=True)
def _no_bars():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="package")
def ordered(tmp_path_factory):
    """A GPTQ folder with act-order, the float model of its values, and the Q/DQ program that it becomes."""
    folder, model = tmp_path_factory.mktemp("ordered"), foreign.llama()
    foreign.write_gptq(folder, model, act=True)
    return folder, model, fxq.load_checkpoint(folder, lower=False)


@pytest.fixture(scope="package")
def bert():
    """A captured BERT."""
    return fxq.capture(foreign.bert(), {"input_ids": foreign.IDS, "attention_mask": torch.ones_like(foreign.IDS)})
