"""Train two MLPs and two residual CNNs on scikit-learn's digits; align, interpolate and merge each pair.

Run with ``make demo`` or ``python examples/digits.py --out digits.png``; needs ``autoperm[demo]``. No download.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import autoperm
from autoperm import Curve, interpolate
from autoperm.evaluate import Evaluator

BATCH = 128
TRAIN = 1400


class Data(NamedTuple):
    """The digits: images of shape (n, 1, 8, 8) in [0, 1], and their classes."""

    train: TensorDataset
    test: TensorDataset


class Block(nn.Module):
    """Residual block of two 3x3 convolutions with BatchNorm; a 1x1 convolution on the way around if shapes change."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def mlp(width: int = 256) -> nn.Sequential:
    """Three hidden layers of one width."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def cnn(width: int = 32) -> nn.Sequential:
    """Stem, an identity block, a block that doubles the width and halves the resolution, pooling, linear."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width),
        Block(width, 2 * width, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def load(*, seed: int = 0) -> Data:
    """Split the 1797 digits in 1400 for training and 397 for the test, after a shuffle."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(digits.images).float().unsqueeze(1)[order] / 16
    classes = torch.from_numpy(digits.target).long()[order]
    return Data(TensorDataset(images[:TRAIN], classes[:TRAIN]), TensorDataset(images[TRAIN:], classes[TRAIN:]))


def train(
    model: nn.Module,
    seed: int,
    data: Data,
    *,
    epochs: int = 50,
    rate: float = 1e-3,
    progress: tqdm[None] | None = None,
) -> nn.Module:
    """Initialise a model anew from a seed and train it in place; the seed also gives the order of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data.train, batch_size=BATCH, shuffle=True, generator=order)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for images, classes in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            optimizer.step()
        if progress is not None:
            progress.update()
    return model.eval()


class Setting(NamedTuple):
    """A kind of model, and how it is trained."""

    build: Callable[[], nn.Module]
    epochs: int
    rate: float


SETTINGS = {"MLP": Setting(mlp, 50, 1e-3), "CNN": Setting(partial(cnn, 48), 10, 5e-3)}


def pair(name: str, seed: int, data: Data, progress: tqdm[None]) -> dict[str, Curve]:
    """Train two models, and evaluate the path between them before and after aligning, and repaired."""
    progress.set_description(name)
    build, epochs, rate = SETTINGS[name]
    a, b = (train(build(), 2 * seed + i, data, epochs=epochs, rate=rate, progress=progress) for i in range(2))
    evaluate = Evaluator(DataLoader(data.test, batch_size=512))
    aligned = autoperm.align(a, b).model
    repair = autoperm.Repair(list(DataLoader(data.train, batch_size=500)), batches=1)
    return {
        "naive": interpolate(a, b, evaluate),
        "aligned": interpolate(a, aligned, evaluate),
        "aligned + REPAIR": interpolate(a, aligned, evaluate, renormalize=repair),
    }


def table(results: dict[str, dict[str, Curve]]) -> str:
    """Barriers of the test loss in nats (Git Re-Basin's definition), and accuracies in percent."""
    rows = [f"{'model':5}  {'path':16} {'loss barrier':>12} {'A':>8} {'middle':>8} {'B':>8}"]
    for name, curves in results.items():
        for label, curve in curves.items():
            accuracy = curve.metrics["accuracy"]
            places = "".join(f"{accuracy[place]:9.1%}" for place in (0, len(accuracy) // 2, -1))
            rows.append(f"{name:5}  {label:16} {curve.barrier('loss'):12.3f}{places}")
    return "\n".join(rows)


def picture(results: dict[str, dict[str, Curve]]) -> Figure:
    """One column per model: test loss above test accuracy along the path."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    panels = figure.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
    titles = {"MLP": "MLP, 3 hidden layers of 256", "CNN": "residual CNN, 48 and 96 channels"}
    for column, (name, curves) in zip(panels.T, results.items(), strict=True):
        autoperm.plot.curve(curves, metrics=["loss", "accuracy"], axes=column, title=titles[name])
        column[0].set_xlabel("")
    for row, label in zip(panels, ("test loss (nats)", "test accuracy"), strict=True):
        for axes in row:
            axes.set_ylabel("")
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    for axes in panels[0, 1:]:
        axes.get_legend().remove()
    panels[1, 0].set_ylim(0, 1.03)
    return figure


def main() -> None:
    """Train, align, interpolate; print a table and save a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="where to save the picture")
    parser.add_argument("--seed", type=int, default=0, help="the two models of a pair get the seeds 2s and 2s + 1")
    args = parser.parse_args()

    data = load()
    with tqdm(total=2 * sum(setting.epochs for setting in SETTINGS.values()), unit="epoch") as progress:
        results = {name: pair(name, args.seed, data, progress) for name in SETTINGS}
    print(table(results))
    picture(results).savefig(args.out, dpi=170)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
