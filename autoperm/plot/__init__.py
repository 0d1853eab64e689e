"""Draw results and specifications. Needs matplotlib: ``pip install "autoperm[plot]"``.

Neither pyplot nor matplotlib's settings are touched, and nothing is shown: every function returns the figure.
"""

from __future__ import annotations

from .calibration import reliability
from .curves import curve
from .matchings import matching
from .spec import draw_spec
from .style import saved as saved
from .surfaces import surface
from .trends import trend

__all__ = ["curve", "draw_spec", "matching", "reliability", "surface", "trend"]
