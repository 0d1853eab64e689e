"""How far the probabilities that a model gives are those with which it is right."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Result


@dataclass(frozen=True)
class Reliability(Result):
    """A reliability curve: how often what is predicted with some probability is true.

    Attributes:
        edges: of the bins, from 0 to 1; one more than there are bins.
        confidence: for each bin the mean of the predicted probabilities; None if it is empty.
        frequency: for each bin the share of predictions that are true; None if it is empty.
        count: for each bin how many predictions there are.
        kind: ``"one-vs-rest"``, where each class of each sample is a prediction, or ``"top-1"``, where the most likely
            class of each sample is.
    """

    edges: tuple[float, ...]
    confidence: tuple[float | None, ...]
    frequency: tuple[float | None, ...]
    count: tuple[int, ...]
    kind: str
