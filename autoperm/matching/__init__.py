"""Find the permutation of model B that brings it closest to model A, and those of many models."""

from __future__ import annotations

from .annealing import SimulatedAnnealing
from .baselines import greedy_matching, identity_matching
from .exhaustive import exhaustive_matching
from .match import ManyMatch, Match
from .matcher import ManyMatcher, ManyModelMatcher, Matcher, ModelMatcher
from .merge_many import MergeMany
from .reference import ToReference
from .straight_through import StraightThrough
from .weight import weight_matching

__all__ = [
    "ManyMatch",
    "ManyMatcher",
    "ManyModelMatcher",
    "Match",
    "Matcher",
    "MergeMany",
    "ModelMatcher",
    "SimulatedAnnealing",
    "StraightThrough",
    "ToReference",
    "exhaustive_matching",
    "greedy_matching",
    "identity_matching",
    "weight_matching",
]
