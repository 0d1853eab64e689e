"""Does a matcher find a permutation that was planted, exactly and under noise?

Run ``python benchmarks/recovery.py --cache DIR``, or ``make benchmark``. Model B is model A with noise and its units in
a random order. Everything runs in one process with one thread; what is in DIR is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from models import GPT2, ResNet20, mlp, noise, resnet50
from page import fill, table
from torch import Tensor, nn

import autoperm
from autoperm import Match, Permutation, PermutationSpec
from autoperm.matchers import parameters

NOISES = (0.0, 0.1, 0.3)
"""Standard deviations, in those of each tensor."""


# --- networks


class Residual(nn.Module):
    """Layers, and a way around them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual_mlp(depth: int, *, norm: bool = False, width: int = 64, hidden: int = 128) -> nn.Module:
    """Blocks of two linear layers on a stream; with a LayerNorm before each, if there is a norm."""
    layers: list[nn.Module] = [nn.Linear(32, width)]
    for _ in range(depth):
        before = [nn.LayerNorm(width)] if norm else []
        layers.append(Residual(*before, nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)))
    return nn.Sequential(*layers, nn.Linear(width, 10))


def resnext(depth: int = 6, width: int = 64, groups: int = 8) -> nn.Module:
    """Bottlenecks with grouped convolutions on one stream: the groups are units, and so are the channels inside."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth):
        inner = (nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        grouped = (nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.BatchNorm2d(width), nn.ReLU())
        layers.append(Residual(*inner, *grouped, nn.Conv2d(width, width, 1)))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def small_gpt(*, tied: bool) -> nn.Module:
    """A decoder of 12 layers, 4 heads of 16, and 256 tokens."""
    return GPT2(width=64, heads=4, tokens=256, length=32, tied=tied)


def tokens(seed: int) -> Tensor:
    """Draw two sentences."""
    return torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(seed))


class Network(NamedTuple):
    """Some rows of the table: title, architecture, inputs, and how many seeds weight matching gets, and the others."""

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    seeds: int = 100
    fewer: int = 10


NETWORKS = {
    "mlp": Network("MLP 3x512", mlp, noise(2, 784), fewer=3),
    **{
        f"residual{depth}{'-norm' * norm}": Network(
            f"residual MLP, {depth} blocks{', LayerNorm' * norm}",
            partial(residual_mlp, depth, norm=norm),
            noise(2, 32),
            fewer=fewer,
        )
        for depth, fewer in ((6, 20), (12, 10), (32, 5))
        for norm in (False, True)
    },
    "resnext": Network("residual, grouped convolutions", resnext, noise(2, 3, 8, 8), fewer=5),
    "resnet20": Network("ResNet20", ResNet20, noise(2, 3, 32, 32), fewer=10),
    "resnet50-16": Network("ResNet50, a quarter as wide", partial(resnet50, 16), noise(2, 3, 64, 64), fewer=1),
    "resnet50": Network("ResNet50", resnet50, noise(2, 3, 64, 64), seeds=3, fewer=0),
    "gpt": Network("transformer, 12 layers, tied", partial(small_gpt, tied=True), tokens, fewer=3),
    "gpt-untied": Network("transformer, 12 layers, untied", partial(small_gpt, tied=False), tokens, fewer=3),
}


# --- matchers


class Method(NamedTuple):
    """A matcher, the kernel that its objective has, and whether it gets fewer seeds."""

    match: Callable[..., Match]
    kernel: str = "cosine"
    fewer: bool = False


def algorithm_1(spec: PermutationSpec, *params: Any) -> Match:
    """Descend as the paper does, on the inner product of all weights, from the identity."""
    return autoperm.weight_matching(spec, *params, kernel="linear", start=spec.identity())


METHODS = {
    "weight, Algorithm 1": Method(algorithm_1, "linear", fewer=True),
    "weight": Method(autoperm.weight_matching),
    "graduated": Method(autoperm.graduated_assignment, fewer=True),
    "frank-wolfe": Method(autoperm.frank_wolfe, fewer=True),
}


# --- one measurement


def fresh(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network; scales and shifts of norms, which are all alike in a fresh one, become random."""
    torch.manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.copy_(1 + 0.1 * torch.randn_like(module.weight))
                module.bias.copy_(0.1 * torch.randn_like(module.bias))
    return model


def noisy(model: nn.Module, share: float, seed: int) -> nn.Module:
    """Add Gaussian noise to every parameter, as a share of its standard deviation."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += share * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return model


class Outcome(NamedTuple):
    """What a matcher did with one planted permutation.

    Attributes:
        exact: whether it was found.
        fixed: the share of positions that are right.
        seconds: that matching took.
        above: whether what was found has a larger objective than what was planted.
    """

    exact: bool
    fixed: float
    seconds: float
    above: bool


def recover(network: Network, method: Method, spec: PermutationSpec, share: float, seed: int) -> Outcome:
    """Plant a permutation, and look for it."""
    a = fresh(network.build, seed)
    planted = spec.random(seed)
    params = parameters(a), parameters(planted.apply(noisy(a, share, 1000 + seed)))
    start = time.process_time()
    match = method.match(spec, *params)
    seconds = time.process_time() - start
    truth = planted.inverse()
    there = autoperm.weight_matching(spec, *params, kernel=method.kernel, start=truth, max_sweeps=0).objective[0]
    exact = match.permutation == truth
    return Outcome(exact, fixed(match.permutation.compose(planted)), seconds, not exact and match.objective[-1] > there)


def fixed(permutation: Permutation) -> float:
    """Return the share of positions that a permutation leaves where they are."""
    right = total = 0
    for factor in permutation.spec.free:
        index = permutation[factor.name]
        right += int((index == torch.arange(factor.size)).sum())
        total += index.numel()
    return right / max(total, 1)


# --- all measurements


def outcomes(name: str, method: str, share: float, folder: Path, specs: dict[str, PermutationSpec]) -> list[Outcome]:
    """Return one outcome for each seed; those that are not kept are measured."""
    network, how = NETWORKS[name], METHODS[method]
    file = folder / f"recovery-{name}-{method.replace(' ', '_')}-{share}.json"
    found = [Outcome(*each) for each in json.loads(file.read_text())] if file.exists() else []
    wanted = network.fewer if how.fewer else network.seeds
    if len(found) < wanted and name not in specs:
        specs[name] = autoperm.discover(fresh(network.build, 0), network.inputs(0))
    for seed in range(len(found), wanted):
        found.append(recover(network, how, specs[name], share, seed))
        file.write_text(json.dumps(found))
    if found:
        print(f"{name}, {method}, noise {share}: {cell(found)}", file=sys.stderr, flush=True)
    return found


def cell(found: list[Outcome]) -> str:
    """Write how many of how many were found, and if not all were, the mean share of right positions."""
    exact = sum(each.exact for each in found)
    share = f" ({mean(each.fixed for each in found):.1%})" if exact < len(found) else ""
    above = sum(each.above for each in found)
    return f"{exact} of {len(found)}{share}{f', {above} above' if above else ''}"


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the outcomes")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--matchers", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--page", type=Path, help="a page to write the table into; it is printed too")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    specs: dict[str, PermutationSpec] = {}
    every = {
        (name, share, method): outcomes(name, method, share, args.cache, specs)
        for method in args.matchers
        for name in args.networks
        for share in NOISES
    }
    rows = []
    for name in args.networks:
        for share in NOISES:
            cells = [every[name, share, method] for method in args.matchers]
            rows.append([NETWORKS[name].title, f"{share:g}", *(cell(found) if found else "" for found in cells)])
        seconds = [[each.seconds for share in NOISES for each in every[name, share, m]] for m in args.matchers]
        rows.append([NETWORKS[name].title, "seconds", *(f"{mean(s):.2g}" if s else "" for s in seconds)])
    text = table(["network", "noise", *args.matchers], rows)
    print(text)
    if args.page is not None:
        fill(args.page, "recovery", text)


if __name__ == "__main__":
    main()
