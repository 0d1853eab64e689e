"""What REPAIR recovers of the barrier that alignment leaves: ``python benchmarks/repair.py --cache DIR --data DIR``.

*   scikit-learn's digits: plain and LayerNorm networks of seven convolutions, and the residual network with BatchNorm
    of ``digits.py``, trained from seeds;
*   with ``--data``, CIFAR-10: every two of three ResNet20 (see ``barriers.py``), where re-estimated statistics of
    BatchNorm are the alternative. They were trained on other images than those of CIFAR-10's training set.

Curves are kept in the cache, one file each; what is there is not computed again. It needs ``autoperm[demo]``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import barriers
import torch
from barriers import Pair
from digits_models import Data, kept, load
from matplotlib.figure import Figure
from page import fill, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import autoperm
from autoperm import Curve
from autoperm.renormalize import ReestimateBatchNorm, Renormalizer
from autoperm.repair import Repair

MATCHERS = ("graduated", "activation")
IMAGES = 500
"""That renormalise networks with BatchNorm."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm of the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def plain(width: int, *, norms: bool) -> nn.Sequential:
    """Seven convolutions with biases, in the manner of VGG; each into a LayerNorm of its channels, if wanted."""
    layers: list[nn.Module] = []
    inputs = 1
    for place, outputs in enumerate([width, width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([ChannelNorm(outputs)] if norms else []), nn.ReLU()]
        if place in (1, 3):
            layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


Choice = Callable[[TensorDataset], Renormalizer | None]
"""What renormalises, given training data."""


class Case(NamedTuple):
    """Some rows of the table."""

    title: str
    pairs: dict[str, Callable[[], Pair]]
    choices: dict[str, Choice]
    matchers: tuple[str, ...] = MATCHERS


def some(data: TensorDataset, count: int) -> TensorDataset:
    """Return the first samples of a data set."""
    return TensorDataset(*(tensor[:count] for tensor in data.tensors))


def repairing(data: TensorDataset, images: int = 1400, **options: Any) -> Renormalizer:
    """Repair on one batch of images, with which two sweeps are exact."""
    return Repair(list(DataLoader(some(data, images), batch_size=images)), **options)


def reestimating(data: TensorDataset) -> Renormalizer:
    """Re-estimate the statistics of BatchNorm."""
    return ReestimateBatchNorm(list(DataLoader(some(data, IMAGES), batch_size=250)))


def nothing(data: TensorDataset) -> None:
    """Leave the models as they are."""


def digits_case(
    title: str, name: str, epochs: int, build: Callable[[], nn.Sequential], pairs: int, folder: Path
) -> Case:
    """Train pairs of models, or load them."""
    data: Callable[[], Data] = cache(load)

    def pair(number: int) -> Pair:
        a, b = (kept(build(), name, seed, data(), epochs, folder) for seed in (2 * number, 2 * number + 1))
        return Pair(a, b, data().train, data().test)

    choices: dict[str, Choice] = {"aligned": nothing, "REPAIR": repairing}
    if any(isinstance(layer, ChannelNorm) for layer in build()):
        convolutions = [str(i) for i, layer in enumerate(build()) if isinstance(layer, nn.Conv2d)]
        choices["REPAIR before the norms"] = partial(repairing, layers=convolutions)
        choices["REPAIR before and after"] = partial(repairing, layers="all")
    choices["REPAIR, 100 images"] = partial(repairing, images=100)
    return Case(title, {str(number): partial(pair, number) for number in range(pairs)}, choices)


def find_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return the cases whose data are there."""
    cases = {
        "plain": digits_case(
            "digits, 7 convolutions 48 to 192", "plain-48", 30, partial(plain, 48, norms=False), args.pairs, args.cache
        )._replace(matchers=(*MATCHERS, "straight-through")),
        "norms": digits_case(
            "digits, 7 convolutions 32 to 128 with LayerNorm",
            "norms-32",
            15,
            partial(plain, 32, norms=True),
            args.pairs,
            args.cache,
        ),
    }
    choices: dict[str, Choice] = {
        "aligned": nothing,
        "re-estimated": reestimating,
        "REPAIR": partial(repairing, images=IMAGES),
    }
    digits = barriers.digits_case("cnn-128", args.pairs // 2, args.cache)
    cases["cnn"] = Case("digits, residual CNN 128/256 with BatchNorm", digits.pairs, choices)
    if args.data is not None:
        cifar = barriers.cifar_case(args.data)
        cases["cifar"] = Case(cifar.title, cifar.pairs, choices)
    return {name: case for name, case in cases.items() if name in args.cases}


def align(pair: Pair, matcher: str) -> Pair:
    """Permute model B."""
    batches = list(DataLoader(pair.train, batch_size=250))
    chosen: Any = matcher
    if matcher == "straight-through":
        order = torch.Generator().manual_seed(0)
        shuffled = DataLoader(pair.train, batch_size=200, shuffle=True, generator=order)
        chosen = autoperm.StraightThrough(shuffled, cross_entropy, steps=100)
    data = batches if matcher == "activation" else None
    aligned = autoperm.align(pair.a, pair.b, matcher=chosen, data=data, example_inputs=batches[0][0][:8])
    return pair._replace(b=aligned.model)


def measure(pair: Pair, renormalizer: Renormalizer | None, points: int) -> Curve:
    """Evaluate the path."""
    evaluator = autoperm.Evaluator(DataLoader(pair.test, batch_size=250))
    return autoperm.interpolate(pair.a, pair.b, evaluator, points=points, renormalize=renormalizer)


ALIGNED: dict[tuple[str, str, str], Pair] = {}
"""By case, pair and matcher: some take a minute."""


def aligned_pair(case: Case, label: str, matcher: str) -> Pair:
    """Return a pair with model B permuted."""
    key = case.title, label, matcher
    if key not in ALIGNED:
        ALIGNED[key] = align(case.pairs[label](), matcher)
    return ALIGNED[key]


def curves(args: argparse.Namespace, name: str, case: Case, matcher: str, choice: str) -> list[Curve]:
    """Return the curves of all pairs, from the cache if they are there."""
    found = []
    for label in case.pairs:
        file = args.cache / f"repair-{name}-{label}-{args.points}-{matcher}-{choice.replace(' ', '_')}.json"
        if not file.exists():
            start = time.perf_counter()
            pair = aligned_pair(case, label, matcher)
            measure(pair, case.choices.get(choice, nothing)(pair.train), args.points).save(file)
            print(f"{file.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        found.append(Curve.load(file))
    return found


def removed(before: Iterable[float], after: Iterable[float]) -> str:
    """Write what share of the barrier, summed over the pairs, is gone."""
    return f"{1 - sum(after) / sum(before):.0%}"


def rows(args: argparse.Namespace, name: str, case: Case) -> Iterator[list[str]]:
    """Yield a row for each way: means over the pairs, and the share of what alignment leaves that is removed."""

    def row(matcher: str, choice: str, found: list[Curve], aligned: list[Curve] | None) -> list[str]:
        error, loss = ([curve.barrier(metric) for curve in found] for metric in ("accuracy", "loss"))
        shares = ["", ""]
        if aligned is not None:
            shares = [
                removed([curve.barrier(metric) for curve in aligned], of)
                for metric, of in (("accuracy", error), ("loss", loss))
            ]
        accuracies = [curve.metrics["accuracy"] for curve in found]
        ends, middles = mean(x[i] for x in accuracies for i in (0, -1)), [x[len(x) // 2] for x in accuracies]
        return [
            matcher,
            choice,
            f"{ends:.1%}",
            f"{mean(middles):.1%} ({min(middles):.1%} to {max(middles):.1%})",
            f"{100 * mean(error):.1f}",
            f"{mean(loss):.3f}",
            f"{mean(max(0.0, curve.barrier('loss', reference='chord')) for curve in found):.3f}",
            *shares,
        ]

    yield row("none", "naive", curves(args, name, case, "identity", "naive"), None)
    for matcher in case.matchers:
        aligned = curves(args, name, case, matcher, "aligned")
        for choice in case.choices:
            found = curves(args, name, case, matcher, choice)
            yield row(matcher, choice, found, None if choice == "aligned" else aligned)


HEAD = [
    "matcher",
    "then",
    "ends",
    "accuracy in the middle",
    "error barrier, points",
    "loss barrier, mean of ends",
    "chord",
    "error barrier removed",
    "loss barrier removed",
]


LOOKS = {
    "naive": ("identity", "naive"),
    "aligned": ("activation", "aligned"),
    "aligned + re-estimated": ("activation", "re-estimated"),
    "aligned + REPAIR": ("activation", "REPAIR"),
}
"""What the picture shows, by the names that plots know."""


def picture(args: argparse.Namespace, case: Case) -> Figure:
    """Draw the mean of CIFAR-10's pairs along the path."""
    labels = {"loss": "test loss (nats)", "accuracy": "test accuracy"}
    drawn = {look: mean_curve(curves(args, "cifar", case, *choice)) for look, choice in LOOKS.items()}
    return autoperm.plot.curve(drawn, labels=labels)


def mean_curve(found: Sequence[Curve]) -> Curve:
    """Return the mean over pairs, position by position."""
    metrics = {
        name: tuple(mean(values) for values in zip(*(curve.metrics[name] for curve in found), strict=True))
        for name in found[0].metrics
    }
    return Curve(found[0].lam, metrics, found[0].higher_is_better)


def main() -> None:
    """Compute what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for trained weights and curves")
    parser.add_argument("--data", type=Path, help="folder with the checkpoints and CIFAR-10")
    parser.add_argument("--cases", nargs="*", default=["plain", "norms", "cnn", "cifar"])
    parser.add_argument("--pairs", type=int, default=4, help="of the digits")
    parser.add_argument("--points", type=int, default=11, help="on a path, ends included")
    parser.add_argument("--page", type=Path, help="a page to write the tables into; they are printed too")
    parser.add_argument("--picture", type=Path, help="where to save a picture of CIFAR-10's paths")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = find_cases(args)
    parts = [
        f"### {case.title}, {len(case.pairs)} pairs\n\n{table(HEAD, rows(args, name, case))}"
        for name, case in cases.items()
    ]
    text = "\n".join(parts)
    print(text)
    if args.page is not None:
        fill(args.page, "repair", text)
    if args.picture is not None and "cifar" in cases:
        picture(args, cases["cifar"]).savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
