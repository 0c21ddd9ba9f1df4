"""CTranslate2's decoder with int8 linears, converted from transformers by its own loaders.

It generates by itself, so a token's time is what a longer text takes more. It runs in a process of its own, as its
OpenMP threads and torch's disturb each other.
"""

import copy
import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from decoder_systems import Context, System, Times
from systems import quiet
from torch import Tensor


def eight_bits(context: Context) -> System:
    """Return the converted model; weights int8, activations quantized per token as they come."""
    folder = context.folder / "ctranslate2"
    if not (folder / "model.bin").exists():
        with quiet():
            write(context, folder)
    command = [sys.executable, str(Path(__file__).with_name("ctranslate2_decoder_worker.py"))]
    process = subprocess.Popen(
        [*command, str(folder), str(context.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def run(ids: Tensor, count: int) -> Times:
        pickle.dump(([[f"word{each}" for each in row] for row in ids.tolist()], count), asks)
        asks.flush()
        first, whole = pickle.load(answers)
        return Times(first, [(whole - first) / count])

    return System(run)


def write(context: Context, folder: Path) -> None:
    """Write the model as CTranslate2 reads it; its words are numbers."""
    loaders = importlib.import_module("ctranslate2.converters.transformers")
    loader = {"llama": loaders.LlamaLoader, "gpt2": loaders.GPT2Loader}[context.shape.kind]()
    words = {f"word{number}": number for number in range(context.shape.vocabulary)}
    names = {"bos_token": "word1", "eos_token": "word2", "unk_token": "word0"}
    model = copy.deepcopy(context.model)  # which the loader takes apart
    spec = loader(model, SimpleNamespace(get_vocab=lambda: words, **names))
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
