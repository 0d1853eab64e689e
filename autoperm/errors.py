"""One root error, one class for each kind of fault.

Every message says what went wrong, where (module path and the user's own source line, if known), with which
shapes, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class AutopermError(ValueError):
    """Root of everything that autoperm raises on purpose."""


class SignatureError(AutopermError):
    """A signature does not parse, or does not fit the operation it is for.

    The message shows the signature with a caret under the fault::

        a name must not stand alone in a result: 'k'
          "... i, o i -> ... k"
                             ^
    """


class TraceError(AutopermError):
    """A model could not be traced to a graph: data-dependent control flow, failing or unsuitable inputs."""


class SpecError(AutopermError):
    """A specification or permutation does not fit the tensors it is applied to, or contradicts itself."""


class ArchitectureError(AutopermError):
    """Two models do not have the same architecture: names, shapes or dtypes of their tensors differ."""


class WeightsError(AutopermError):
    """Weights cannot be used: NaN or infinite values."""


class EquivalenceError(AutopermError):
    """A permuted model does not compute what the original computes.

    This is a bug in autoperm or in a registered or hand-written rule, never something to ignore: the curve
    of a broken network can look flat.
    """


class MatcherError(AutopermError):
    """A matcher is not known, lacks what it needs, or returned no permutation of the specification it was given."""


class EvaluationError(AutopermError):
    """An evaluation gave something that is not a dictionary of finite numbers, or had no data."""


class ActivationsError(AutopermError):
    """Activations cannot be used: NaN or infinite values, or shapes that do not fit the recorded ones."""


def quoted(names: Iterable[object]) -> str:
    """Return names as messages show them.

    Example:
        >>> quoted(["loss", "accuracy"])
        "'loss', 'accuracy'"
    """
    return ", ".join(f"'{name}'" for name in names)
