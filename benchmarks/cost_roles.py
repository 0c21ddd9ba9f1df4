"""The processes that cpu_costs.py starts: python cost_roles.py ROLE SPEC, both JSON; prints the answer as JSON.

Libraries are imported where they are used: what they take of memory is part of the answer, and ONNX Runtime needs no
torch.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
Answer = dict[str, Any]


def seconds(spec: Spec) -> Answer:
    """Return how long each stage of quantizing takes, once the model is loaded and the kernels are built."""
    fxq, models = importlib.import_module("fxquant"), importlib.import_module("encoder_models")
    folder = Path(spec["folder"]) if spec["folder"] else None
    model, example = models.load_example(spec["model"], folder, spec["quick"])
    importlib.import_module("fxquant.kernels.cpu.native").available()  # builds or loads the kernels
    found: Answer = {}
    captured = timed(found, "capture", lambda: fxq.capture(model, example))
    prepared = timed(found, "prepare", lambda: fxq.prepare(captured, "x86", "dynamic"))
    converted = timed(found, "convert", lambda: fxq.convert(prepared))
    lowered = timed(found, "lower", lambda: fxq.lower(converted))
    with importlib.import_module("torch").no_grad():
        timed(found, "first call", lambda: lowered(**example))
    return found


def timed(found: Answer, stage: str, work: Callable[[], Any]) -> Any:
    """Return the result of `work`, and note its seconds."""
    start = time.perf_counter()
    result = work()
    found[stage] = time.perf_counter() - start
    return result


def latencies(spec: Spec) -> Answer:
    """Return the median seconds of a saved artifact at each of some shapes."""
    torch, turns = importlib.import_module("torch"), importlib.import_module("turns")
    torch.set_num_threads(spec["threads"])
    loaded, found = importlib.import_module("fxquant").load(spec["path"]), {}
    with torch.no_grad():
        for size, tokens in spec["shapes"]:
            batch = {name: torch.from_numpy(each) for name, each in arrays(size, tokens).items()}
            call = {"": lambda batch=batch: loaded(**batch)}
            found[f"{size}x{tokens}"] = turns.take_turns(call, spec["rounds"], spec["seconds"])[""].median
    return found


def memory_of_fxquant(spec: Spec) -> Answer:
    """Return the memory of a process that loads an artifact and runs it."""
    torch, fxq = importlib.import_module("torch"), importlib.import_module("fxquant")
    importlib.import_module("transformers.modeling_outputs")  # a library too: the class of what the model returns
    torch.set_num_threads(spec["threads"])
    imported = resident("VmRSS")
    loaded = fxq.load(spec["path"])
    ready, batch = resident("VmRSS"), {name: torch.from_numpy(each) for name, each in arrays(*spec["shape"]).items()}
    with torch.no_grad():
        for _ in range(3):
            loaded(**batch)
    return {"imported": imported, "loaded": ready, "peak": resident("VmHWM")}


def memory_of_onnxruntime(spec: Spec) -> Answer:
    """Return the memory of a process that loads an ONNX file and runs it."""
    library, batch = importlib.import_module("onnxruntime"), arrays(*spec["shape"])
    imported, options = resident("VmRSS"), library.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = library.InferenceSession(spec["path"], options, providers=["CPUExecutionProvider"])
    ready = resident("VmRSS")
    for _ in range(3):
        session.run(None, batch)
    return {"imported": imported, "loaded": ready, "peak": resident("VmHWM")}


def arrays(size: int, tokens: int) -> dict[str, Any]:
    """Return a batch of the token 1, without padding; as NumPy has it, since not every process has torch."""
    numpy = importlib.import_module("numpy")
    ones = numpy.ones((size, tokens), dtype=numpy.int64)
    return {"input_ids": ones, "attention_mask": ones.copy(), "token_type_ids": numpy.zeros_like(ones)}


def resident(field: str) -> float:
    """Return the megabytes that this process has in memory ("VmRSS"), or had at most ("VmHWM")."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1e3


ROLES: dict[str, Callable[[Spec], Answer]] = {
    "seconds": seconds,
    "latencies": latencies,
    "fxquant": memory_of_fxquant,
    "onnxruntime": memory_of_onnxruntime,
}

if __name__ == "__main__":
    print(json.dumps(ROLES[sys.argv[1]](json.loads(sys.argv[2]))))
