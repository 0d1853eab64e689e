"""Find the permutation of model B that brings it closest to model A."""

from __future__ import annotations

from .activation import match_moments
from .annealing import SimulatedAnnealing
from .baselines import greedy_matching, identity_matching
from .exhaustive import exhaustive_matching
from .frank_wolfe import frank_wolfe
from .graduated import graduated_assignment
from .match import ManyMatch, Match
from .matcher import ManyMatcher, ManyModelMatcher, Matcher, ModelMatcher
from .merge_many import MergeMany
from .reference import ToReference
from .similarity import GroupSimilarity, unit_similarity
from .sinkhorn import Sinkhorn
from .straight_through import StraightThrough
from .universe import Universe
from .weight import weight_matching

__all__ = [
    "GroupSimilarity",
    "ManyMatch",
    "ManyMatcher",
    "ManyModelMatcher",
    "Match",
    "Matcher",
    "MergeMany",
    "ModelMatcher",
    "SimulatedAnnealing",
    "Sinkhorn",
    "StraightThrough",
    "ToReference",
    "Universe",
    "exhaustive_matching",
    "frank_wolfe",
    "graduated_assignment",
    "greedy_matching",
    "identity_matching",
    "match_moments",
    "unit_similarity",
    "weight_matching",
]
