"""A process that runs CTranslate2 for peers_ctranslate2.py: python ctranslate2_worker.py MODEL_FOLDER THREADS

Its OpenMP threads, in torch's process, would make torch's own wait passively from then on: a small model took twice as
long in every system of torch. Pickled messages come on standard input, pickled answers go to standard output:

- a dict of input_ids (batch, tokens) and lengths (batch,), int32, and token_type_ids, lists: keep it; no answer;
- "run": compute, and answer with None when it is done;
- "result": answer with hidden states and pooled output of the last run;
- "type": answer with the type that the model computes in.
"""

import importlib
import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


def main() -> None:
    """Answer messages until the input ends."""
    folder, threads = sys.argv[1:]
    library = importlib.import_module("ctranslate2")
    model = library.Encoder(folder, device="cpu", compute_type="int8", inter_threads=1, intra_threads=int(threads))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not get between the answers
    serve(model, answers)


def serve(model: Any, answers: Any) -> None:
    """Read messages and answer them; a batch comes before the first "run"."""
    batch: Mapping[str, Any] = {}
    found: Any = None
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if isinstance(message, dict):
            batch = message
            continue
        if message == "run":
            found = run(model, batch)
        pickle.dump(answer(message, model, found), answers)
        answers.flush()


def run(model: Any, batch: Mapping[str, Any]) -> Any:
    """Return what the model computes for a batch; padding is told by the sequences' lengths."""
    view = importlib.import_module("ctranslate2").StorageView.from_array
    return model.forward_batch(view(batch["input_ids"]), view(batch["lengths"]), batch["token_type_ids"])


def answer(message: str, model: Any, found: Any) -> Any:
    """Return the answer to a message."""
    if message == "result":
        return np.array(found.last_hidden_state), np.array(found.pooler_output)
    return model.compute_type if message == "type" else None


if __name__ == "__main__":
    main()
