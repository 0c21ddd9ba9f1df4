"""Choosing by measurement: what is measured, kept, shared, forced and left out; the times are told."""

import json
import multiprocessing

import pytest
import torch

from fxquant.errors import ConfigError
from fxquant.kernels.cuda import choice
from fxquant.kernels.cuda.choice import Choices, Question, run_fastest

QUESTION = Question("int8_gemm", (32, 768, 768, "int8"))


def candidates(**seconds):
    """Return runs that give how long they take, or raise."""

    def runs(value):
        def run():
            if isinstance(value, Exception):
                raise value
            return value

        return run

    return {name: runs(value) for name, value in seconds.items()}


class Timer:
    def __init__(self):
        self.measured = []

    def __call__(self, run):
        self.measured.append(run)
        return run()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "choices.json"


def test_the_fastest_is_measured_once_and_kept(path):
    timer = Timer()
    choices = Choices(path, timer)
    assert choices.known(QUESTION) is None
    for _ in range(2):
        assert choices.choose(QUESTION, candidates(triton=2.0, int_mm=1.0)) == "int_mm"
    assert len(timer.measured) == 2
    assert choices.known(QUESTION) == "int_mm"
    other = Question("int8_gemm", (64, 768, 768, "int8"))
    assert choices.choose(other, candidates(triton=1.0, int_mm=3.0)) == "triton"
    again = Choices(path, pytest.fail)
    assert [again.choose(each, candidates(triton=9.0, int_mm=9.0)) for each in (QUESTION, other)] == [
        "int_mm",
        "triton",
    ]


def test_what_fails_is_left_out_and_the_reason_kept(path):
    failing = candidates(triton=2.0, scaled_mm=RuntimeError("row-wise scales need sm_90\nand more"))
    assert Choices(path, Timer()).choose(QUESTION, failing) == "triton"
    (answer,) = json.loads(path.read_text()).values()
    assert answer["seconds"] == {"triton": 2.0}
    assert answer["excluded"] == {"scaled_mm": "RuntimeError: row-wise scales need sm_90"}


def test_what_failed_for_want_of_memory_is_not_kept(path):
    short, timer = candidates(triton=2.0, int_mm=torch.OutOfMemoryError("CUDA out of memory")), Timer()
    choices = Choices(path, timer)
    assert [choices.choose(QUESTION, short) for _ in range(2)] == ["triton", "triton"]
    assert len(timer.measured) == 2, "this process asks once"
    assert Choices(path, Timer()).choose(QUESTION, candidates(triton=2.0, int_mm=1.0)) == "int_mm"


def test_where_all_fail_the_first_is_taken(path):
    assert Choices(path, Timer()).choose(QUESTION, candidates(a=ValueError("x"), b=ValueError())) == "a"


def test_a_choice_that_is_no_candidate_is_made_anew(path):
    choices = Choices(path, Timer())
    choices.choose(QUESTION, candidates(triton=2.0, int_mm=1.0))
    assert choices.choose(QUESTION, candidates(triton=2.0)) == "triton"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {}}', '{"a": {"chosen": 3}}'])
def test_a_damaged_file_is_written_anew(path, text):
    path.parent.mkdir()
    path.write_text(text)
    assert Choices(path, Timer()).choose(QUESTION, candidates(triton=2.0, int_mm=1.0)) == "int_mm"
    assert json.loads(path.read_text())[QUESTION.key]["chosen"] == "int_mm"


def test_a_cache_that_cannot_be_written_serves_the_process(tmp_path):
    (tmp_path / "file").write_text("")
    timer = Timer()
    choices = Choices(tmp_path / "file" / "choices.json", timer)
    for _ in range(2):
        assert choices.choose(QUESTION, candidates(triton=2.0, int_mm=1.0)) == "int_mm"
    assert len(timer.measured) == 2


def _decide(path, number, queue):
    each = candidates(**{name: float(name != f"way{number}") + 1 for name in ("way0", "way1", "way2")})
    found = [Choices(path, Timer()).choose(Question("op", (size,)), each) for size in range(5)]
    queue.put(found)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads, which these processes do not use
def test_processes_that_start_together_agree(path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_decide, args=(path, number, queue)) for number in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1] == found[2]
    assert len(json.loads(path.read_text())) == 5


class OnGpu:
    """Stands for a tensor on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)


@pytest.fixture
def gpu(path, monkeypatch):
    timer = Timer()
    choices = Choices(path, timer)
    monkeypatch.setattr(choice, "choices_on", lambda device: choices)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    return timer


def test_nothing_is_measured_while_a_graph_is_recorded(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert run_fastest(QUESTION, OnGpu(), candidates(triton=2.0, int_mm=1.0)) == 2.0
    assert not gpu.measured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert run_fastest(QUESTION, OnGpu(), candidates(triton=2.0, int_mm=1.0)) == 1.0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert run_fastest(QUESTION, OnGpu(), candidates(triton=2.0, int_mm=1.0)) == 1.0, "what is known serves there, too"


def test_without_a_gpu_or_a_choice_nothing_is_measured(gpu):
    assert run_fastest(QUESTION, torch.zeros(1), candidates(triton=2.0, int_mm=1.0)) == 2.0
    assert run_fastest(QUESTION, OnGpu(), candidates(triton=2.0)) == 2.0
    assert not gpu.measured


def test_the_environment_forces_a_candidate(gpu, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "fp8_gemm=scaled_mm, int8_gemm=triton")
    assert run_fastest(QUESTION, OnGpu(), candidates(int_mm=1.0, triton=2.0)) == 2.0
    assert not gpu.measured
    monkeypatch.setenv(choice.VARIABLE, "int8_gemm=int_m")
    text = r"FXQUANT_CUDA_CHOICE asks for 'int_m' to compute int8_gemm: did you mean 'int_mm'\? Known: int_mm, triton"
    with pytest.raises(ConfigError, match=text):
        run_fastest(QUESTION, OnGpu(), candidates(int_mm=1.0, triton=2.0))
