"""What all results share: JSON, and rows for a data frame."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, Self

from .errors import SpecError, quoted


@dataclass(frozen=True)
class Result:
    """A frozen dataclass of numbers, strings, tuples and mappings, which goes to JSON and back.

    Example:
        >>> @dataclass(frozen=True)
        ... class Score(Result):
        ...     loss: tuple[float, ...]
        >>> Score((0.5, 0.25)).to_dict()
        {'loss': [0.5, 0.25]}
        >>> Score.from_dict({"loss": [0.5, 0.25]})
        Score(loss=(0.5, 0.25))
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the result as dictionaries, lists, strings and numbers, for JSON."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a result from what :meth:`to_dict` returned.

        Raises:
            SpecError: if an entry is missing, or the values do not fit each other.
        """
        needed = [item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING]
        missing = [name for name in needed if name not in data]
        if missing:
            raise SpecError(f"a {cls.__name__} needs the entries {quoted(needed)}, but {quoted(missing)} is missing")
        return cls(**{item.name: _frozen(data[item.name]) for item in fields(cls) if item.name in data})

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result to a JSON file, from which :meth:`load` reads it."""
        text = json.dumps({"result": type(self).__name__, **self.to_dict()}, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a result from a file that :meth:`save` wrote.

        Raises:
            SpecError: if the file is broken, or holds another kind of result.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise SpecError(f"{path} is no JSON file: {error}") from error
        kind = data.get("result") if isinstance(data, dict) else None
        if kind != cls.__name__:
            raise SpecError(f"{path} holds {'no result' if kind is None else f'a {kind}'}, not a {cls.__name__}")
        return cls.from_dict(data)

    def records(self) -> list[dict[str, Any]]:
        """Return rows with names, as ``pandas.DataFrame`` and ``csv.DictWriter`` take them."""
        raise NotImplementedError


def check_metrics(metrics: Mapping[str, Sequence[float]], count: int, what: str) -> None:
    """Check that every metric has one finite value for each of ``count`` things, which ``what`` names.

    Raises:
        SpecError: if one has more, fewer, or a value that is NaN or infinite, which a barrier would not see.

    Example:
        >>> check_metrics({"loss": (0.5, math.nan)}, 2, "points")
        Traceback (most recent call last):
        autoperm.errors.SpecError: metric 'loss' is nan at 1 of 2 points; leave the metric or the points out
    """
    for name, values in metrics.items():
        if len(values) != count:
            raise SpecError(f"metric '{name}' has {len(values)} values for {count} {what}")
        wrong = [value for value in values if not math.isfinite(value)]
        if wrong:
            raise SpecError(
                f"metric '{name}' is {wrong[0]} at {len(wrong)} of {count} {what}; leave the metric or the {what} out"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value  # NumPy's numbers too


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, (tuple, list)) else value
