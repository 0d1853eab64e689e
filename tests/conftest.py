"""Shared fixtures: every network is built and traced once a session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, settings
from networks import LARGE, NETWORKS, randomize
from torch import Tensor, nn

from autoperm import PermutationSpec, discover

# Tracing takes a tenth of a second or more, so a time limit for each example would only measure the machine.
settings.register_profile(
    "ci", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=2000, derandomize=False)

torch.set_num_threads(1)

# The exporter logs thousands of lines for a reader of its own; they would bury the report of a failed test.
logging.getLogger("torch.__trace").propagate = False


@dataclass(frozen=True)
class Traced:
    """A network with what discovery says of it. Shared by all tests: they must not change it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    spec: PermutationSpec
    groups: list[tuple[int, int]]


@cache
def _traced(name: str) -> Traced:
    network = NETWORKS.get(name) or LARGE[name]
    model = network.build()
    if name in LARGE:  # trained statistics are not all zero or one, so that moving them wrongly shows
        randomize(model)
    inputs = network.inputs()
    return Traced(model, inputs, discover(model, inputs), network.groups)


@pytest.fixture(scope="session")
def traced() -> Callable[[str], Traced]:
    return _traced
