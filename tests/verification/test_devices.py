"""The certificate: equal integers on every device, and each way in which they are not."""

import json
from contextlib import contextmanager

import pytest
import torch
from captured import lowered
from torch import nn

import fxquant as fxq
from fxquant.backends import known_backends, read_backend
from fxquant.graph import edit
from fxquant.kernels import devices as registry
from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.isa import PROCESSORS
from fxquant.kernels.devices import DEVICES, Device
from fxquant.verification.devices import certify


@pytest.fixture(scope="module")
def qdq():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7)).eval()
    return fxq.convert(fxq.prepare(fxq.capture(model, (torch.randn(5, 12),)), "x86", "dynamic"))


def on(monkeypatch, *devices, kernel_set="reference"):
    monkeypatch.setitem(DEVICES._entries, kernel_set, lambda: devices)


def test_every_device_of_this_machine_gives_the_same_integers():
    certificate = certify(lowered("distilbert"), ["reference", "x86"])
    assert certificate.problems == ()
    rows = {(row.backend, row.device): row for row in certificate.rows}
    assert {name for backend, name in rows if backend == "x86"} == {
        *(f"cpu {name}" for name in PROCESSORS["x86"]),
        "torch onednn",
        "torch portable",
    }
    ran = [row for row in certificate.rows if not row.missing]
    assert {("reference", "torch, any device"), ("x86", "torch portable")} <= {(r.backend, r.device) for r in ran}
    assert {row.status for row in ran} == {"equal"}
    assert len({row.integers for row in ran}) == 1
    assert {len(row.products) for row in ran} == {8}, "6 linears, 2 embeddings"
    assert all(row.outputs > 30 for row in ran)


def test_what_multiplies_alone_agrees_too_and_every_backend_is_asked(qdq):
    certificate = certify(qdq)
    assert certificate.problems == ()
    assert {row.backend for row in certificate.rows} == set(known_backends())
    rows = {row.device: row for row in certificate.rows}
    for name in ("neon (emulated)", "neon_dot (emulated)", "neon_i8mm (emulated)", "torch qnnpack"):
        if name in rows and not rows[name].missing:
            assert (rows[name].status, rows[name].integers) == ("equal", 5 * 20 + 5 * 7), name


def test_each_device_runs_its_own_kernels(qdq):
    kernels = {row.device: {each.kernel for each in row.products} for row in certify(qdq, ["x86"]).rows}
    assert kernels["torch portable"] == {"fxquant.x86_linear_dynamic_int8"}
    if native.available():
        assert kernels["cpu avx2"] == {"fxquant.packed_linear_dynamic_int8"}


def test_what_a_device_forces_ends_with_it():
    if not native.available():
        pytest.skip("no C++ kernels")
    before = native.use_isa("")
    for device in DEVICES["x86"]():
        if device.missing is None:
            with device.entered():
                assert native.available() is device.name.startswith("cpu ")
    assert (native.use_isa(""), native.available()) == (before, True)


def test_a_program_is_certified_graph_by_graph(qdq):
    program = fxq.Program({"forward": qdq})
    (row,) = certify(program, ["reference"]).rows
    assert (row.status, len(row.products)) == ("equal", 2)


def test_a_device_that_is_not_here_says_why(qdq, monkeypatch):
    on(monkeypatch, Device("card", missing="there is no card"))
    (row,) = certify(qdq, ["reference"]).rows
    assert (row.status, row.notes, row.products) == ("not run", ("there is no card",), ())


def test_a_device_that_multiplies_alone(qdq, monkeypatch):
    def exact(q, weight):
        return (q.double() @ weight.double().t()).to(torch.int32)

    def saturating(q, weight):
        pairs = (q.double().unsqueeze(1) * weight.double()).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1).to(torch.int32)

    on(monkeypatch, Device("emulated", multiply=exact, graphs=False), Device("saturating", multiply=saturating))
    certificate = certify(qdq, ["reference"])
    sound, wrong = certificate.rows
    assert (sound.status, sound.integers, sound.outputs) == ("equal", 5 * 20 + 5 * 7, None)
    assert wrong.status == "differs"
    assert (
        f"reference on saturating, linear_relu at 0 (saturating): {wrong.products[0].different} of 100"
        in (certificate.problems[0])
    )


def test_a_kernel_that_is_wrong_on_one_device_is_found(qdq, monkeypatch):
    @contextmanager
    def broken():
        from fxquant.kernels.reference import linear

        before = linear.accumulate
        linear.accumulate = lambda x, zero_point, weight: before(x, zero_point, weight).index_fill_(
            1, torch.tensor(3), 1
        )
        try:
            yield
        finally:
            linear.accumulate = before

    on(monkeypatch, Device("sound"), Device("broken", entered=broken))
    certificate = certify(qdq, ["reference"])
    assert [row.status for row in certificate.rows] == ["equal", "differs"]
    assert {each.different for each in certificate.rows[1].products} == {5}, "one column of five rows"
    assert len(certificate.problems) == 2


def test_a_kernel_that_raises_is_a_problem(qdq, monkeypatch):
    @contextmanager
    def failing():
        raise RuntimeError("the driver is too old\nmore")
        yield

    on(monkeypatch, Device("failing", entered=failing))
    certificate = certify(qdq, ["reference"])
    assert certificate.rows[0].status == "fails"
    assert certificate.problems[0].endswith("linear_relu at 0: RuntimeError: the driver is too old")
    assert "the whole graph does not run" in certificate.to_table()


LIMITED = {
    "name": "narrow",
    "kernels": "reference",
    "spec": {"activation": {}, "weight": {"symmetric": True}},
    "op": [{"use": "linear", "kernel": "linear_int8", "x": "activation", "weight": "weight"}],
    "kernel": {"linear_int8": {"x": {"dtype": "int8"}}},
}


def test_what_a_backend_has_no_kernel_for_is_listed(qdq, monkeypatch):
    from fxquant.verification import devices

    narrow = read_backend(LIMITED, "narrow.toml")
    monkeypatch.setattr(devices, "load_backend", lambda name: narrow)
    (row,) = certify(qdq, ["narrow"]).rows
    assert (row.status, row.integers) == ("not run", 0)
    assert row.notes == ("2 products: kernel linear_int8 takes x.dtype = int8, the recipe asks for uint8",)


def test_ops_without_integer_sums_are_listed():
    gm = fxq.convert(fxq.prepare(fxq.capture(nn.Linear(8, 8), (torch.randn(2, 8),)), "x86", "weight-only"))
    certificate = certify(gm, ["reference"])
    assert certificate.left_out == ("linear at the top: x is not in integers, so that its kernel multiplies floats",)
    assert certificate.rows[0].status == "not run"
    assert "without integer sums: linear at the top" in certificate.to_table()


def test_only_quantized_graphs_have_one():
    with pytest.raises(fxq.FxQuantError, match="only a quantized graph can be verified: this one is captured only"):
        certify(fxq.capture(nn.Linear(8, 8), (torch.randn(2, 8),)))
    with pytest.raises(fxq.ConfigError, match="unknown backend 'x68'"):
        certify(fxq.convert(fxq.prepare(fxq.capture(nn.Linear(8, 8), (torch.randn(2, 8),)), "x86", "dynamic")), ["x68"])


def test_json(qdq):
    data = json.loads(certify(qdq, ["reference"]).to_json())
    (row,) = data["devices"]
    assert (row["status"], row["device"], data["problems"]) == ("equal", "torch, any device", [])
    assert row["products"][0]["integers"] == 100


def test_sets_are_registered_once():
    assert registry.DEVICES is DEVICES
    assert {"reference", "x86"} <= set(DEVICES)
    with pytest.raises(ValueError, match="registered twice"):
        registry.devices("x86")(list)


def test_moving_a_graph_to_a_device_leaves_it_where_it_was(qdq, monkeypatch):
    on(monkeypatch, Device("nowhere", place=torch.device("meta")))
    certificate = certify(qdq, ["reference"])
    assert certificate.rows[0].status == "fails"
    assert not any(tensor.is_meta for tensor in edit.constants(qdq).values())
