"""REPAIR of models between others, for any architecture, folded into weights and biases.

:mod:`~autoperm.repair.layers` finds what can be repaired in a recorded run, with :mod:`~autoperm.repair.affine`, which
knows the operations, and :mod:`~autoperm.repair.operands`, which knows who reads a parameter.
:mod:`~autoperm.repair.measure` takes statistics, :mod:`~autoperm.repair.fold` changes parameters, and
:mod:`~autoperm.repair.bound` puts it all together, behind :mod:`~autoperm.repair.front`.
"""

from __future__ import annotations

from .bound import BoundRepair
from .front import Repair, repair
from .layers import LeftAlone
from .result import Repaired, RepairedLayer

__all__ = ["BoundRepair", "LeftAlone", "Repair", "Repaired", "RepairedLayer", "repair"]
