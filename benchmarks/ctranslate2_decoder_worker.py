"""The process in which decoders_ctranslate2.py runs its model: reads prompts, answers with the seconds of two runs."""

import importlib
import pickle
import sys
import time
from typing import Any


def main() -> None:
    """Answer (prompts, count) with the seconds of one token after the prompts, and of 1 + count."""
    folder, threads = sys.argv[1:]
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    model = importlib.import_module("ctranslate2").Generator(folder, intra_threads=int(threads), compute_type="int8")
    while True:
        try:
            prompts, count = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump((seconds(model, prompts, 1), seconds(model, prompts, 1 + count)), answers)
        answers.flush()


def seconds(model: Any, prompts: list[list[str]], count: int) -> float:
    """Return how long it takes to read the prompts and choose `count` tokens, the likeliest each."""
    start = time.perf_counter()
    found = model.generate_batch(
        prompts, max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False, end_token=[]
    )
    found = list(found)
    end = time.perf_counter()
    assert all(len(each.sequences_ids[0]) == count for each in found), "every token takes its time"
    return end - start


if __name__ == "__main__":
    main()
