"""Rewrites of float graphs, each usable alone, some with an inverse: `transforms.FuseBatchNorm()(graph)`."""

from fxquant.transforms.base import Composition, Miss, Transformation, compose
from fxquant.transforms.batch_norm import FuseBatchNorm
from fxquant.transforms.bias import FuseBias, SplitBias
from fxquant.transforms.division import DivisionToMultiplication, MultiplicationToDivision
from fxquant.transforms.linears import MergeLinears, SplitLinears

__all__ = [
    "Composition",
    "DivisionToMultiplication",
    "FuseBatchNorm",
    "FuseBias",
    "MergeLinears",
    "Miss",
    "MultiplicationToDivision",
    "SplitBias",
    "SplitLinears",
    "Transformation",
    "compose",
]
