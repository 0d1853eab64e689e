"""Do matchers find better optima than many random starts of coordinate descent?

Run ``python benchmarks/optima.py --cache DIR --data DIR``, or ``make benchmark``. The trained pairs are those of
``barriers.py``; beside them are pairs of networks with random weights. Everything runs in one process with one thread;
what is in the cache is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from barriers import find_cases
from page import fill, table
from recovery import NETWORKS, fresh
from torch import nn

import autoperm
from autoperm import Match
from autoperm.matchers import parameters
from autoperm.matching.weight import Kernel

STARTS = 10
"""The identity, and random permutations."""

FILE_NAME = str.maketrans({" ": "_", "/": "-", ",": None})

RANDOM = ("mlp", "residual6", "residual32", "resnext", "resnet20", "gpt")

METHODS: dict[str, Callable[..., Match]] = {
    "weight": autoperm.weight_matching,
    "graduated": autoperm.graduated_assignment,
    "frank-wolfe": autoperm.frank_wolfe,
}


class Models(NamedTuple):
    """Two models, and an input."""

    a: nn.Module
    b: nn.Module
    x: torch.Tensor


def find_pairs(args: argparse.Namespace) -> dict[str, Callable[[], Models]]:
    """Return the pairs by what the table calls them."""

    def take(make: Callable[[], Any]) -> Models:
        pair = make()
        return Models(pair.a, pair.b, torch.stack([pair.train[i][0] for i in range(2)]))

    def draw(name: str, first: int) -> Models:
        network = NETWORKS[name]
        return Models(fresh(network.build, first), fresh(network.build, first + 1), network.inputs(0))

    pairs: dict[str, Callable[[], Models]] = {}
    for case in find_cases(args).values():
        pairs |= {f"{case.title}, pair {number}": partial(take, make) for number, make in case.pairs.items()}
    for name in RANDOM:
        pairs |= {f"random weights, {NETWORKS[name].title}, {i}-{i + 1}": partial(draw, name, i) for i in (0, 2)}
    return pairs


def timed(match: Callable[[], Match]) -> tuple[float, float]:
    """Return the objective that a match reaches, and its seconds."""
    start = time.process_time()
    objective = match().objective[-1]
    return objective, time.process_time() - start


def measure(models: Models, kernel: Kernel) -> dict[str, list[tuple[float, float]]]:
    """Match by every method; return objectives and seconds, of each start for coordinate descent."""
    spec = autoperm.discover(models.a, models.x)
    params = parameters(models.a), parameters(models.b)
    descend = partial(autoperm.weight_matching, spec, *params, kernel=kernel)
    starts = [spec.identity(), *(spec.random(seed) for seed in range(1, STARTS))]
    found = {"descent": [timed(partial(descend, start=start, seed=i)) for i, start in enumerate(starts)]}
    return found | {name: [timed(partial(method, spec, *params, kernel=kernel))] for name, method in METHODS.items()}


def row(title: str, kernel: str, found: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Write objectives relative to the best start of descent, and costs in units of one descent."""
    objectives, seconds = zip(*found["descent"], strict=True)
    best, once = max(objectives), sum(seconds) / len(seconds)
    cells = [title, kernel, f"{(min(objectives) / best - 1):+.2%}"]
    for name in METHODS:
        objective, took = found[name][0]
        cells.append(f"{(objective / best - 1):+.2%} ({took / once:.1f})")
    return cells


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for trained weights and results")
    parser.add_argument("--data", type=Path, help="folder of the checkpoints, as in barriers.py")
    parser.add_argument("--cases", nargs="*", default=["mlp-256", "cnn-128", "cifar", "mnist"], help="trained pairs")
    parser.add_argument("--pairs", type=int, default=2, help="how many pairs of the digits")
    parser.add_argument("--page", type=Path, help="a page to write the table into; it is printed too")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = []
    for title, make in find_pairs(args).items():
        for kernel in get_args(Kernel):
            file = args.cache / f"optima-{title.translate(FILE_NAME)}-{kernel}.json"
            if not file.exists():
                file.write_text(json.dumps(measure(make(), kernel)))
            rows.append(row(title, kernel, json.loads(file.read_text())))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    text = table(["pair", "kernel", "worst of ten", *METHODS], rows)
    print(text)
    if args.page is not None:
        fill(args.page, "optima", text)


if __name__ == "__main__":
    main()
