"""A pretrained text model from a local folder, its tokenizer, and batches of sentences for it; never the network."""

import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxquant.errors import DataError, suggest
from fxquant.evaluation.text import standard_library_sentences

# What a task is called, and the transformers class that loads a model for it.
TASKS = {
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "question-answering": "AutoModelForQuestionAnswering",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
LONGEST = 128  # tokens of a sentence; the rest is cut off


@dataclass(frozen=True)
class Pretrained:
    """A model in float32 and eval mode, and what turns sentences into its inputs.

    `missing` names the weights that the checkpoint lacks and that are therefore random; `longest` is the number of
    tokens that a sentence is cut to.
    """

    model: nn.Module
    tokenizer: Any
    missing: tuple[str, ...]
    longest: int

    def batch(self, sentences: Sequence[str], length: int | None = None) -> dict[str, Tensor]:
        """Return keyword arguments of the model for some sentences, padded to `length`, by default to the longest.

        A model with a decoder gets the same tokens as `decoder_input_ids`, shifted where it knows how.
        """
        padding = "max_length" if length else "longest"
        tokens = self.tokenizer(
            list(sentences), padding=padding, truncation=True, max_length=length or self.longest, return_tensors="pt"
        )
        accepted = inspect.signature(self.model.forward).parameters
        inputs = {name: value for name, value in tokens.items() if name in accepted}
        if "decoder_input_ids" in accepted:
            shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", lambda labels: labels)
            inputs["decoder_input_ids"] = shift(labels=inputs["input_ids"])
        return inputs

    def batches(self, sentences: Sequence[str], size: int = 8) -> list[dict[str, Tensor]]:
        """Return the sentences in order as batches of `size`."""
        return [self.batch(sentences[first : first + size]) for first in range(0, len(sentences), size)]

    def example_inputs(self) -> dict[str, Tensor]:
        """Return a batch of two sentences to capture the model with, at half the length that it takes at most."""
        return self.batch(standard_library_sentences()[:2], length=max(self.longest // 2, 2))


def load_pretrained(folder: str | Path, task: str | None = None) -> Pretrained:
    """Load a text model and its tokenizer from a folder in Hugging Face's layout; no code from the folder is run.

    Args:
        folder: holds config.json, weights and the tokenizer's files.
        task: a key of `TASKS`; by default the class that config.json names in `architectures`.

    Raises:
        DataError: transformers is not installed; the folder or a file in it is missing or damaged; the task is unknown;
            the model takes no text.
    """
    transformers, folder = import_transformers(), Path(folder)
    model, missing = load_model(folder, task)
    with quiet(transformers):
        tokenizer = _tokenizer(transformers, folder)
    longest = min(LONGEST, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST))
    return Pretrained(model, tokenizer, missing, longest)


def load_model(folder: str | Path, task: str | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model of `load_pretrained`, which needs no tokenizer, and the weights that the checkpoint lacks."""
    transformers, folder = import_transformers(), Path(folder)
    config = read_config(folder)
    with quiet(transformers):
        return _model(loader_of(transformers, config, folder, task), folder)


def import_transformers() -> ModuleType:
    """Return transformers, or raise `DataError` where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise DataError(
            "model folders are loaded with transformers, which is not installed: pip install 'fxquant[transformers]'"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return what config.json of a model folder holds, or raise `DataError`."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"{folder} {found}: expected the folder of a model, with config.json, weights and tokenizer; "
            "models are read from disk, and not downloaded by name"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected a model folder in Hugging Face's layout")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds a {type(config).__name__}: expected a JSON object")
    return config


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep transformers' reports and bars off the screen while loading: what matters in them becomes an error."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def loader_of(transformers: ModuleType, config: dict[str, Any], folder: Path, task: str | None) -> Any:
    """Return the transformers class that loads the model."""
    if task is not None and task not in TASKS:
        raise DataError(f"unknown task {task!r}: {suggest(task, TASKS)}")
    if task is not None:
        return getattr(transformers, TASKS[task])
    name = (config.get("architectures") or ["AutoModel"])[0]
    try:
        return getattr(transformers, name)
    except (AttributeError, TypeError):
        raise DataError(
            f"{folder / 'config.json'}: architectures = {config['architectures']!r} is no class of this transformers "
            f"({transformers.__version__}), and code in the folder is not run; choose a task of {', '.join(TASKS)}"
        ) from None


def _model(loader: Any, folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged or incomplete: {error}") from None
    try:
        model, report = loader.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers raises what the checkpoint or the class made it stumble over
        raise DataError(f"{folder}: transformers cannot load the model: {_first_line(error)}") from error
    if report["mismatched_keys"]:
        name, found, expected = sorted(report["mismatched_keys"])[0]
        raise DataError(
            f"{folder}: {name} has shape {tuple(found)} in the checkpoint, and config.json asks for {tuple(expected)}"
        )
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise DataError(
            f"{folder}: {type(model).__name__} takes no input_ids, so sentences are no input of it; call "
            "fxquant.quantize from Python with example inputs of your own"
        )
    return model.eval(), tuple(sorted(report["missing_keys"]))


def _tokenizer(transformers: ModuleType, folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as for the model
        raise DataError(f"{folder}: transformers cannot load the tokenizer: {_first_line(error)}") from error
    files = list(tokenizer.vocab_files_names.values())
    # Without them some classes come up with an empty vocabulary, and every word is unknown.
    if files and not any((folder / name).is_file() for name in files):
        raise DataError(f"{folder} has no tokenizer: expected {' or '.join(sorted(files))} beside the weights")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
