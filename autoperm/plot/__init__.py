"""Draw results and specifications. Needs matplotlib: ``pip install "autoperm[plot]"``.

Neither pyplot nor matplotlib's settings are touched, and nothing is shown: every function returns the figure.
"""

from __future__ import annotations

from .curves import curve
from .spec import draw_spec

__all__ = ["curve", "draw_spec"]
