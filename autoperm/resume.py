"""A file of finished points, from which an interrupted walk goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import SpecError


class Journal:
    """A file with one line of JSON for what is walked, and one for each point that is finished.

    A line that was cut off while it was written is dropped, and nothing else ever is.

    Attributes:
        rows: The metrics of the points that are finished, in order.

    Args:
        path: The file; it is begun if it is not there.
        header: What is walked: entries that JSON can hold.

    Raises:
        SpecError: If the file is of something else; the message says what differs, and the file stays as it is.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "points.jsonl")
        >>> Journal(path, {"points": 3}).append({"loss": 0.5})
        >>> Journal(path, {"points": 3}).rows
        [{'loss': 0.5}]
        >>> Journal(path, {"points": 5})
        Traceback (most recent call last):
        autoperm.errors.SpecError: ...points.jsonl was written for another path: points is 3 there and 5 here. ...
    """

    def __init__(self, path: str | PathLike[str], header: Mapping[str, Any]) -> None:
        self._path = Path(path)
        head = json.dumps({"autoperm": "path", **header}) + "\n"
        try:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        except UnicodeDecodeError as error:
            raise SpecError(f"{path} does not hold the points of a path; give another file for resume=") from error
        if head.startswith(text):  # nothing is there yet, or not even the whole first line
            self._path.write_text(head, encoding="utf-8")
            text = head
        first, *lines = text[: text.rfind("\n") + 1].splitlines() or [text]
        self._compare(json.loads(head), _parsed(first))
        self.rows: list[dict[str, float]] = []
        for number, line in enumerate(lines, start=2):
            row = _parsed(line)
            if not isinstance(row, dict) or not all(isinstance(value, float) for value in row.values()):
                raise SpecError(f"line {number} of {path} is broken; delete it and those after it, or the whole file")
            self.rows.append(row)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole, encoding="utf-8")

    def append(self, row: Mapping[str, float]) -> None:
        """Note that another point is finished."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def _compare(self, here: Mapping[str, Any], there: Any) -> None:
        if not isinstance(there, dict) or there.get("autoperm") != "path":
            raise SpecError(f"{self._path} does not hold the points of a path; give another file for resume=")
        faults = [
            f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in dict.fromkeys([*here, *there])
            if name not in ("models", "metrics") and there.get(name) != here.get(name)
        ]
        asked, asks = there.get("metrics"), here.get("metrics")
        if asked and asks and {*asked} != {*asks}:
            faults.append(f"metrics is {asked} there and {asks} here")
        old, new = there.get("models", ()), here.get("models", ())
        if len(old) != len(new):
            faults.append(f"there are {len(old)} models there and {len(new)} here")
        else:
            faults += [f"model {i} has other weights" for i, (x, y) in enumerate(zip(old, new, strict=True)) if x != y]
        if faults:
            raise SpecError(
                f"{self._path} was written for another path: {'; '.join(faults)}. Go on with what it was written for, "
                "or give another file for resume="
            )


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a hash of a state dict: names, dtypes, shapes and values.

    Example:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
        True
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2, 1)})
        False
    """
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def described(value: object) -> str | None:
    """Return what an object says of itself, without the place in memory, which is another one in each process.

    Example:
        >>> described(None), described(object())
        (None, '<object object>')
    """
    return None if value is None else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
