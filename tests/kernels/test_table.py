import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant.kernels.table import check_pairing, kernel_names, kernels


def test_both_sets_have_the_packaged_kernels():
    assert {"linear_int8", "embedding_int8"} <= set(kernel_names("x86")) & set(kernel_names("reference"))


def test_an_unknown_set_names_the_nearest():
    with pytest.raises(fxq.ConfigError, match="unknown kernel set 'x68': did you mean 'x86'"):
        kernels("x68")


@pytest.mark.parametrize(
    ("kernel", "op", "roles", "text"),
    [
        (
            "linear_int8",
            "conv2d",
            {"weight"},
            "kernel 'linear_int8' does not compute conv2d; it computes linear, ",
        ),
        ("embedding_int8", "linear", {"weight"}, "does not compute linear; it computes embedding"),
        ("linear_int8", "linear", {"x"}, "kernel 'linear_int8' needs weight quantized"),
    ],
    ids=["another op", "another kernel", "a role is missing"],
)
def test_a_pair_that_does_not_fit_is_refused(kernel, op, roles, text):
    with pytest.raises(fxq.ConfigError, match=text):
        check_pairing("x86", kernel, op, frozenset(roles))


def test_a_rule_is_checked_when_its_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nkernels = "x86"\n[spec.weight]\nsymmetric = true\n'
        '[[op]]\nuse = "embedding"\nkernel = "linear_int8"\nweight = "weight"\n'
    )
    with pytest.raises(fxq.ConfigError, match=r"mine.toml: \[\[op\]\] 1 \(embedding\): kernel 'linear_int8' does not"):
        fxq.load_backend(path)


@pytest.mark.parametrize("kernel_set", ["arm", "cuda", "reference", "x86"])
def test_a_kernel_refuses_what_its_file_forgot_to_limit(tmp_path, kernel_set):
    """An affine weight would lose its zero point: the op stays in the Q/DQ form, and the ledger says why."""
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\nkernels = "{kernel_set}"\n'
        "[spec.activation]\ndtype = 'uint8'\ngranularity = 'per-token'\ndynamic = true\n"
        "[spec.weight]\nsymmetric = false\n[recipe.dynamic]\n"
        '[[op]]\nuse = "linear"\nkernel = "linear_int8"\nx = "activation"\nweight = "weight"\n'
    )
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4).eval(), torch.randn(3, 8)
    lowered = fxq.quantize(model, (x,), backend=path)
    (row,) = [row for row in fxq.ledger(lowered).rows if row.op == "linear"]
    assert (row.code, row.kernel) == ("fallback", "Q/DQ")
    assert "the weight has to be int8, symmetric" in row.reason
    torch.testing.assert_close(lowered(x), model(x), atol=0.05, rtol=0)
    with pytest.raises(fxq.CoverageError, match="fallback"):
        fxq.quantize(model, (x,), backend=path, strict=True)
