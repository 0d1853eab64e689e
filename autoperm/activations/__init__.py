"""What models compute on the way, and which units of two models have most in common there.

:mod:`~autoperm.activations.capture` records a model's activations with the factors that their axes carry,
:mod:`~autoperm.activations.speakers` chooses which of them speak for which factor,
:mod:`~autoperm.activations.moments` sums up what they say, and :mod:`~autoperm.activations.matching` solves.
"""

from __future__ import annotations

from .capture import Activation, Capture, replica
from .matching import ActivationMatch, ActivationMatching
from .moments import Moments

__all__ = ["Activation", "ActivationMatch", "ActivationMatching", "Capture", "Moments", "replica"]
