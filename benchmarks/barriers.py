"""Loss barriers of every matcher, on pairs of trained models: ``python benchmarks/barriers.py --cache DIR --data DIR``.

*   scikit-learn's digits: the models of ``digits.py``, whose trained weights are kept in the same folder of the cache;
*   with ``--data``, CIFAR-10: ResNet20 in ``checkpoints/resnet20_cifar10/seed{1,2,3}.pth`` and the original python
    pickles in ``cifar-10-batches-py``;
*   with ``--data``, MNIST: MLPs in ``checkpoints/mlp_mnist/model_{0,1}.pt`` and the original files in ``MNIST/raw``.

What DIR does not have is left out, with a message. Results are kept in the cache; what is there is not computed again.
It needs ``autoperm[demo]``, and rebasin for its rows.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from digits_models import SETUPS, load, trained
from matchers import ACTIVATIONS, FREE, LONG, Data, run
from models import ResNet20
from page import fill, table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import autoperm

MATCHERS = {**FREE, **ACTIVATIONS, **LONG}
METHODS = [*MATCHERS, "rebasin"]
TRAIN, TEST, BATCH = 1000, 1000, 250
"""Images that matchers and BatchNorm see, and images that the loss is of, where there are far more."""


class Pair(NamedTuple):
    """Two trained models, and data of shape (images, ...) with classes."""

    a: nn.Module
    b: nn.Module
    train: TensorDataset
    test: TensorDataset


class Case(NamedTuple):
    """Some rows of the table."""

    title: str
    pairs: dict[str, Callable[[], Pair]]
    has_batch_norm: bool
    shorten: int = 1


# --- data


def read_cifar(file: Path, count: int) -> TensorDataset:
    """Read images of one of the original pickles of CIFAR-10."""
    with file.open("rb") as opened:
        batch = pickle.load(opened, encoding="bytes")
    images = torch.from_numpy(batch[b"data"][:count]).float().div(255).view(-1, 3, 32, 32)
    centre, scale = (torch.tensor(each).view(3, 1, 1) for each in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    return TensorDataset((images - centre) / scale, torch.tensor(batch[b"labels"][:count]))


def read_mnist(folder: Path, part: str, count: int) -> TensorDataset:
    """Read images of the original files of MNIST: 16 bytes of header, 8 for the classes, then a byte a pixel."""
    images, classes = (
        torch.from_numpy(np.frombuffer(gzip.decompress((folder / f"{part}-{kind}.gz").read_bytes()), np.uint8).copy())
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    pixels = images[16:].view(-1, 784)[:count].float().div(255)
    return TensorDataset((pixels - 0.1307) / 0.3081, classes[8:][:count].long())


class MnistMLP(nn.Module):
    """784-400-200-100-10 without biases, with the names of the checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(((784, 400), (400, 200), (200, 100), (100, 10)), start=1):
            setattr(self, f"fc{i}", nn.Linear(inputs, outputs, bias=False))
            setattr(self, f"relu{i}", nn.ReLU() if i < 4 else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = getattr(self, f"relu{i}")(getattr(self, f"fc{i}")(x))
        return x


# --- cases


def loaded(model: nn.Module, file: Path, key: str | None = None) -> nn.Module:
    """Load a checkpoint."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state if key is None else state[key])
    return model.eval()


def digits_case(name: str, pairs: int, folder: Path) -> Case:
    """Take models of the digits benchmark, trained when they are not there."""
    setup = SETUPS[name]
    data = cache(load)

    def pair(number: int) -> Pair:
        a, b = (trained(name, seed, data(), folder) for seed in (2 * number, 2 * number + 1))
        return Pair(a, b, data().train, data().test)

    title = f"digits, {setup.title.partition(', BatchNorm')[0]}"
    return Case(title, {str(number): partial(pair, number) for number in range(pairs)}, setup.renormalize)


def cifar_case(folder: Path) -> Case:
    """Take every two of three checkpoints."""
    batches, checkpoints = folder / "cifar-10-batches-py", folder / "checkpoints" / "resnet20_cifar10"

    def pair(first: int, second: int) -> Pair:
        a, b = (loaded(ResNet20(), checkpoints / f"seed{seed}.pth") for seed in (first, second))
        return Pair(a, b, read_cifar(batches / "data_batch_1", TRAIN), read_cifar(batches / "test_batch", TEST))

    pairs = {f"{i}-{j}": partial(pair, i, j) for i, j in combinations((1, 2, 3), 2)}
    return Case("CIFAR-10, ResNet20", pairs, True, shorten=10)


def mnist_case(folder: Path) -> Case:
    """Take the two checkpoints."""

    def pair() -> Pair:
        files = (folder / "checkpoints" / "mlp_mnist" / f"model_{i}.pt" for i in range(2))
        a, b = (loaded(MnistMLP(), file, "model_state_dict") for file in files)
        return Pair(a, b, *(read_mnist(folder / "MNIST" / "raw", *of) for of in (("train", TRAIN), ("t10k", 10000))))

    return Case("MNIST, MLP 400-200-100", {"0-1": pair}, False)


def find_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return the cases whose data are there."""
    cases = {name: digits_case(name, args.pairs, args.cache) for name in ("mlp-256", "cnn-128")}
    for name, build, needed in (
        ("cifar", cifar_case, ("cifar-10-batches-py", "checkpoints/resnet20_cifar10")),
        ("mnist", mnist_case, ("MNIST/raw", "checkpoints/mlp_mnist")),
    ):
        lacking = [place for place in needed if args.data is None or not (args.data / place).exists()]
        if lacking:
            print(f"{name} is left out: {args.data or 'no --data'} has no {' and no '.join(lacking)}", file=sys.stderr)
        else:
            cases[name] = build(args.data)
    return {name: case for name, case in cases.items() if name in args.cases}


# --- one cell


def moved(case: Case, method: str, pair: Pair, batches: list[Any]) -> tuple[nn.Module, float]:
    """Permute model B; return it, and the seconds that matching took, without discovery."""
    if method == "rebasin":
        from rebasin import PermutationCoordinateDescent

        torch.manual_seed(0)  # rebasin visits layers in a random order
        b = copy.deepcopy(pair.b)
        descent = PermutationCoordinateDescent(copy.deepcopy(pair.a), b, batches[0][0][:8])
        start = time.process_time()
        descent.rebasin()
        return b, time.process_time() - start
    spec = autoperm.discover(pair.a, batches[0][0][:8])
    matcher = MATCHERS[method](Data(batches, F.cross_entropy, case.shorten))
    start = time.process_time()
    permutation = run(matcher, spec, pair.a, pair.b)
    seconds = time.process_time() - start
    return permutation.apply(pair.b), seconds


def measure(case: Case, pair: Pair, method: str, points: int) -> dict[str, Any]:
    """Permute model B, and evaluate the path to it."""
    batches = list(DataLoader(pair.train, batch_size=BATCH))
    b, seconds = moved(case, method, pair, batches)
    curve = autoperm.interpolate(
        pair.a,
        b,
        autoperm.Evaluator(DataLoader(pair.test, batch_size=BATCH)),
        points=points,
        renormalize="batch_norm" if case.has_batch_norm else None,
        data=batches if case.has_batch_norm else None,
    )
    return {"seconds": seconds, "curve": curve.to_dict()}


def cells(args: argparse.Namespace, name: str, case: Case, method: str) -> Iterator[dict[str, Any]]:
    """Yield the results of one matcher for all pairs of a case."""
    for label, build in case.pairs.items():
        file = args.cache / f"barrier-{name}-{label}-{args.points}-{method.replace(' ', '_')}.json"
        if not file.exists() or method in args.again:
            found = measure(case, build(), method, args.points)
            file.write_text(json.dumps(found))
            print(f"{name}, pair {label}, {method}: done", file=sys.stderr, flush=True)
        yield json.loads(file.read_text())


def rows(args: argparse.Namespace, name: str, case: Case) -> Iterator[list[str]]:
    """Yield a row for each matcher: means over the pairs."""
    for method in args.matchers:
        found = list(cells(args, name, case, method))
        if found:
            curves = [autoperm.Curve.from_dict(each["curve"]) for each in found]
            above_mean = mean(curve.barrier() for curve in curves)
            above_chord = mean(curve.barrier(reference="chord") for curve in curves)
            middle = mean(curve.metrics["accuracy"][len(curve.lam) // 2] for curve in curves)
            seconds = mean(each["seconds"] for each in found)
            yield [method, f"{above_mean:.3f}", f"{max(0.0, above_chord):.3f}", f"{middle:.1%}", f"{seconds:.2g}"]


def main() -> None:
    """Compute what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for trained weights and results")
    parser.add_argument("--data", type=Path, help="folder with checkpoints, CIFAR-10 and MNIST")
    parser.add_argument("--cases", nargs="*", default=["mlp-256", "cnn-128", "cifar", "mnist"])
    parser.add_argument("--pairs", type=int, default=3, help="of the digits")
    parser.add_argument("--points", type=int, default=11, help="on a path, ends included")
    parser.add_argument("--matchers", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--again", nargs="*", default=[], choices=METHODS, help="matchers to compute anew")
    parser.add_argument("--page", type=Path, help="a page to write the tables into; they are printed too")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if find_spec("rebasin") is None:
        args.matchers = [method for method in args.matchers if method != "rebasin"]
        print("rebasin is not installed, so its rows are left out", file=sys.stderr)
    head = ["matcher", "barrier, mean of ends", "barrier, chord", "accuracy in the middle", "seconds"]
    parts = []
    for name, case in find_cases(args).items():
        count = f"{len(case.pairs)} pair{'s' * (len(case.pairs) > 1)}"
        parts.append(f"### {case.title}, {count}\n\n{table(head, rows(args, name, case))}")
    text = "\n".join(parts)
    print(text)
    if args.page is not None:
        fill(args.page, "barriers", text)


if __name__ == "__main__":
    main()
