"""What is said when a model does not trace, and what is held back meanwhile."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch

from ..batches import describe

NOT_THEIRS = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, os.path.dirname(__file__)))
"""Where torch and this package lie: lines of files in there are not the user's."""


@contextmanager
def quiet() -> Generator[None]:
    """Hold back what torch prints, logs and warns of when a model does not trace: the error that we raise says it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or what it is."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Write dtypes and shapes of inputs."""
    return (
        ", ".join([*map(describe, args), *(f"{key}={describe(value)}" for key, value in kwargs.items())]) or "no inputs"
    )


def user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours."""
    found, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith((*NOT_THEIRS, "<")):
            found = f"{file}:{step.tb_lineno} in {step.tb_frame.f_code.co_name}"
        step = step.tb_next
    return found
