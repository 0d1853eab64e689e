"""Discover the permutation symmetries of any PyTorch model; align, compare and merge trained models with them.

>>> import torch
>>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)) for _ in "ab")
>>> aligned = align(a, b)
>>> print(aligned)  # doctest: +ELLIPSIS
Alignment of Sequential
  found:   1 group, 10^35.4 permutations
...
"""

from importlib.metadata import version

from . import errors as errors
from . import plot as plot
from .activations import Activation as Activation
from .activations import ActivationMatch as ActivationMatch
from .activations import ActivationMatching as ActivationMatching
from .align import Alignment as Alignment
from .align import align as align
from .align_many import ManyAlignment as ManyAlignment
from .align_many import align_many as align_many
from .barriers import Estimate as Estimate
from .barriers import mean_barrier as mean_barrier
from .batch_norm import renormalize_batch_norm as renormalize_batch_norm
from .blend import average as average
from .blend import lerp as lerp
from .blend import slerp as slerp
from .calibration import Reliability as Reliability
from .calibration import reliability as reliability
from .compare import Comparison as Comparison
from .compare import compare as compare
from .correction import Corrected as Corrected
from .correction import correct_prior as correct_prior
from .correction import fit_bias as fit_bias
from .correction import fit_temperature as fit_temperature
from .curves import Curve as Curve
from .discover import discover as discover
from .ensemble import Ensemble as Ensemble
from .ensemble import ensemble_curve as ensemble_curve
from .errors import AutopermError as AutopermError
from .evaluate import Evaluator as Evaluator
from .evaluate import Predictions as Predictions
from .evaluate import predict as predict
from .explain import Explanation as Explanation
from .inputs import find_inputs as find_inputs
from .interpolate import interpolate as interpolate
from .interpolate import interpolate_chain as interpolate_chain
from .interpolate import interpolate_simplex as interpolate_simplex
from .matching import GroupSimilarity as GroupSimilarity
from .matching import ManyMatch as ManyMatch
from .matching import ManyMatcher as ManyMatcher
from .matching import Match as Match
from .matching import Matcher as Matcher
from .matching import MergeMany as MergeMany
from .matching import ModelMatcher as ModelMatcher
from .matching import SimulatedAnnealing as SimulatedAnnealing
from .matching import Sinkhorn as Sinkhorn
from .matching import StraightThrough as StraightThrough
from .matching import ToReference as ToReference
from .matching import Universe as Universe
from .matching import exhaustive_matching as exhaustive_matching
from .matching import frank_wolfe as frank_wolfe
from .matching import graduated_assignment as graduated_assignment
from .matching import greedy_matching as greedy_matching
from .matching import identity_matching as identity_matching
from .matching import weight_matching as weight_matching
from .merge import Merged as Merged
from .merge import merge as merge
from .metrics import Metric as Metric
from .metrics import perplexity as perplexity
from .metrics import top as top
from .permutation import Permutation as Permutation
from .probe import Probe as Probe
from .probe import probe as probe
from .renormalize import ReestimateBatchNorm as ReestimateBatchNorm
from .renormalize import Renormalizer as Renormalizer
from .repair import Repair as Repair
from .repair import Repaired as Repaired
from .repair import repair as repair
from .rules import register as register
from .spec import Factor as Factor
from .spec import PermutationSpec as PermutationSpec
from .surface import Surface as Surface
from .transfer import Transferred as Transferred
from .transfer import add_task_vectors as add_task_vectors
from .transfer import task_vector as task_vector
from .transfer import transfer as transfer

__version__ = version("autoperm")
