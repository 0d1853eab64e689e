"""REPAIR of models between others, for any architecture, folded into weights and biases.

:mod:`~autoperm.repair.layers` finds what can be repaired in a recorded run, with :mod:`~autoperm.repair.affine`, which
knows the operations, and :mod:`~autoperm.repair.operands`, which knows who reads a parameter.
:mod:`~autoperm.repair.measure` takes statistics, :mod:`~autoperm.repair.fold` changes parameters, and
:mod:`~autoperm.repair.bound` puts it all together.
"""

from __future__ import annotations

from .layers import LeftAlone
from .repair import Repair, repair
from .result import Repaired, RepairedLayer

__all__ = ["LeftAlone", "Repair", "Repaired", "RepairedLayer", "repair"]
