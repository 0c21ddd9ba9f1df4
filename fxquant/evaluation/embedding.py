"""Sentence embeddings of an encoder, and how near those of a quantized model come to the float model's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxquant.errors import DataError


@dataclass(frozen=True)
class Agreement:
    """How near two sets of embeddings of the same sentences are.

    `mean` and `minimum` are of the sentences' cosines; `spearman` is the rank correlation of the cosines between all
    pairs of sentences, which is what a search by similarity depends on.
    """

    mean: float
    minimum: float
    spearman: float
    sentences: int


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the tokens that are no padding: hidden (B, S, H), mask (B, S) of 0 and 1, gives (B, H).

    A row without tokens gives zeros.
    """
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def embed(model: Callable[..., Any], batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Return the mean-pooled `last_hidden_state` of each sentence, (sentences, H).

    Raises:
        DataError: there are no batches, or the model returns no `last_hidden_state`.
    """
    pooled = []
    with torch.no_grad():
        for batch in batches:
            output = model(**batch)
            if getattr(output, "last_hidden_state", None) is None:
                raise DataError(
                    f"the model returns a {type(output).__name__} without last_hidden_state: give an encoder"
                )
            pooled.append(mean_pool(output.last_hidden_state, batch["attention_mask"]))
    if not pooled:
        raise DataError("there are no batches to embed; give at least one")
    return torch.cat(pooled)


def agreement(reference: Tensor, candidate: Tensor) -> Agreement:
    """Compare embeddings (N, H) of the same N ≥ 3 sentences; fewer leave no ranks to compare.

    Raises:
        DataError: the shapes differ, or there are fewer than three sentences.
    """
    if reference.shape != candidate.shape or reference.ndim != 2:
        raise DataError(
            f"embeddings of {tuple(reference.shape)} and {tuple(candidate.shape)} cannot be compared: "
            "expected two of one shape (sentences, size)"
        )
    if len(reference) < 3:
        raise DataError(f"{len(reference)} sentences leave no ranks to compare; give at least three")
    cosines = torch.nn.functional.cosine_similarity(reference.double(), candidate.double(), dim=-1)
    spearman = rank_correlation(pairwise_cosines(reference).numpy(), pairwise_cosines(candidate).numpy())
    return Agreement(float(cosines.mean()), float(cosines.min()), spearman, len(reference))


def pairwise_cosines(embeddings: Tensor) -> Tensor:
    """Return the cosines between all pairs of rows (N, H) as a float64 vector of N·(N − 1)/2."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[first, second]


def rank_correlation(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return Spearman's rank correlation of two vectors: Pearson's, of their ranks; equal values share a mean rank.

    NaN where one of them is constant.
    """
    ranks = np.stack([_ranks(left), _ranks(right)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    return float(centred[0] @ centred[1] / norms.prod()) if norms.all() else float("nan")


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[Any] = last - (counts - 1) / 2
    return mean_rank[position]
