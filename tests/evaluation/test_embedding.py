from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fxquant.errors import DataError
from fxquant.evaluation.embedding import agreement, embed, mean_pool, pairwise_cosines, rank_correlation


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_pool_averages_real_tokens_only():
    hidden, mask = random(3, 4, 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]])
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0), hidden[2, 1]])
    torch.testing.assert_close(mean_pool(hidden, mask), expected)


def test_mean_pool_of_no_tokens_is_zero():
    assert torch.equal(mean_pool(random(1, 3, 2), torch.zeros(1, 3, dtype=torch.long)), torch.zeros(1, 2))


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=40))
def test_rank_correlation_is_scipys(pairs):
    left, right = np.array(pairs, dtype=float).T
    ours = rank_correlation(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)


def test_pairwise_cosines_are_those_of_all_pairs():
    rows = random(5, 3)
    expected = [float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm()) for i in range(5) for j in range(i + 1, 5)]
    assert pairwise_cosines(rows).tolist() == pytest.approx(expected, abs=1e-6)


def test_agreement_against_independent_figures():
    reference, candidate = random(20, 6), random(20, 6) + 0.3 * random(20, 6, seed=1)
    found = agreement(reference, candidate)
    cosines = [1 - float(_cosine_distance(a, b)) for a, b in zip(reference.numpy(), candidate.numpy(), strict=True)]
    assert found.mean == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.minimum == pytest.approx(min(cosines), abs=1e-6)
    from scipy.spatial.distance import pdist

    expected = stats.spearmanr(pdist(reference.numpy(), "cosine"), pdist(candidate.numpy(), "cosine")).statistic
    assert found.spearman == pytest.approx(expected, abs=1e-9)
    assert found.sentences == 20


def _cosine_distance(a, b):
    from scipy.spatial.distance import cosine

    return cosine(a, b)


def test_agreement_of_equal_embeddings_is_one():
    found = agreement(random(8, 4), random(8, 4))
    assert (found.mean, found.minimum, found.spearman) == pytest.approx((1, 1, 1))


def test_agreement_refuses_other_shapes():
    with pytest.raises(DataError, match=r"embeddings of \(8, 4\) and \(7, 4\) cannot be compared"):
        agreement(random(8, 4), random(7, 4))


def test_agreement_needs_three_sentences():
    with pytest.raises(DataError, match="2 sentences leave no ranks"):
        agreement(random(2, 4), random(2, 4))


def batches():
    mask = torch.ones(2, 3, dtype=torch.long)
    return [{"x": random(2, 3, 4, seed=seed), "attention_mask": mask} for seed in (0, 1)]


def test_embed_joins_the_batches_in_order():
    found = embed(lambda x, attention_mask: SimpleNamespace(last_hidden_state=2 * x), batches())
    torch.testing.assert_close(found, torch.cat([2 * batch["x"].mean(1) for batch in batches()]))


def test_embed_needs_an_encoder():
    with pytest.raises(DataError, match="returns a SimpleNamespace without last_hidden_state: give an encoder"):
        embed(lambda x, attention_mask: SimpleNamespace(logits=x), batches())


def test_embed_needs_batches():
    with pytest.raises(DataError, match="there are no batches"):
        embed(lambda: None, [])
