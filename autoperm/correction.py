"""Classifiers whose logits are corrected: what the ends of a path could do without being merged.

Two networks that were trained on different mixtures of classes, or for long, are wrong about how sure they are and how
common each class is. Averaging repairs some of that, and so looks as if it had merged what they know. A temperature
or a bias for each class repairs it too, without a second network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import EvaluationError, SpecError
from .evaluate import device_of, predict
from .metrics import labelled, logits


class Corrected(nn.Module):
    """A classifier with logits / temperature + bias in place of its logits.

    It holds the model that it was made from, not a copy.

    Attributes:
        model: the classifier, whose outputs are logits with the classes along the last axis.
        temperature: a tensor of one element; above 1 the probabilities are less extreme.
        bias: one value for each class.

    Example:
        >>> model = Corrected(nn.Identity(), torch.tensor(2.0), torch.tensor([0.0, 1.0]))
        >>> model(torch.tensor([[4.0, 2.0]]))
        tensor([[2., 2.]])
    """

    temperature: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, temperature: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("temperature", temperature.detach().to(device_of(model)))
        self.register_buffer("bias", bias.detach().to(device_of(model)))
        self.training = model.training  # not self.train(mode), which would reach into the model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the corrected logits, in the type of the model's."""
        found = logits(self.model(*args, **kwargs))
        if found.shape[-1:] != self.bias.shape:
            raise SpecError(
                f"the bias has shape {tuple(self.bias.shape)}, but the logits have shape {tuple(found.shape)}; a "
                "correction has one number for each class, and classes are along the last axis"
            )
        return found / self.temperature.to(found.dtype) + self.bias.to(found.dtype)

    def extra_repr(self) -> str:
        """Show the temperature and the bias."""
        bias = ", ".join(f"{value:.3g}" for value in self.bias[:8].tolist()) + ", ..." * (len(self.bias) > 8)
        return f"temperature={float(self.temperature):.3g}, bias=[{bias}]"


def fit_temperature(model: nn.Module, loader: Iterable[Any]) -> Corrected:
    """Divide the logits of a classifier by the temperature that gives the least cross entropy on held-out data.

    Which class is the most likely does not change, only how likely. The cross entropy is convex in 1/T; the root of its
    derivative is found to the last digits, so that there is nothing to tune.

    Args:
        model: a classifier with logits of shape (batch, classes); it is not changed.
        loader: batches (input, target) that the model was not trained on, nor will be judged on.

    Returns:
        A module around the model.

    Raises:
        EvaluationError: if no temperature is best: the model is right on every sample, so that a lower temperature is
            always better, as on its training data; or the logits of the true classes are no larger than the others.

    Example:
        >>> data = [(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))]
        >>> fit_temperature(nn.Identity(), data)(torch.tensor([4.0, 0.0])).softmax(-1)
        tensor([0.7500, 0.2500])

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", arXiv 1706.04599 (2017),
        Section 4.2.
    """
    from scipy.optimize import brentq

    found, targets = _held_out(model, loader)
    true = found.gather(-1, targets[:, None]).squeeze(-1)
    ruled_out = found.isneginf()
    finite = found.masked_fill(ruled_out, 0.0)

    def slope(inverse: float) -> float:  # of the cross entropy in 1/T
        shares = (inverse * finite).masked_fill(ruled_out, -math.inf).softmax(-1)
        return float(((shares * finite).sum(-1) - true).mean())

    if bool((true == found.amax(-1)).all()):
        raise EvaluationError(
            f"the model is right on all {len(true)} samples, so that the lower the temperature the better; take more "
            "held-out data, not the training data"
        )
    if slope(0.0) >= 0:
        raise EvaluationError(
            "the logits of the true classes are not larger than the others on these data, so that the higher the "
            "temperature the better; check that the targets belong to the inputs, and that the outputs are logits"
        )
    high = 1.0
    while slope(high) < 0:
        high *= 2
    inverse: float = brentq(slope, 0.0, high, xtol=1e-12)
    dtype = torch.get_default_dtype()
    return Corrected(model, torch.tensor(1 / inverse, dtype=dtype), torch.zeros(found.shape[-1], dtype=dtype))


def fit_bias(model: nn.Module, loader: Iterable[Any]) -> Corrected:
    """Add to the logits of a classifier the bias for each class that gives the least cross entropy on held-out data.

    So it learns how common the classes are where it is used, if that is not known; if it is, take
    :func:`correct_prior`. The biases sum to 0.

    Args:
        model: a classifier with logits of shape (batch, classes); it is not changed.
        loader: batches (input, target) that the model was not trained on, nor will be judged on.

    Returns:
        A module around the model.

    Raises:
        EvaluationError: if a class has no sample, for which no bias would be low enough.

    Example:
        >>> data = [(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))]
        >>> fit_bias(nn.Identity(), data)(torch.zeros(1, 2)).softmax(-1)
        tensor([[0.7500, 0.2500]])

    Reference:
        Jordan, Sedghi, Saukh, Entezari and Neyshabur, "REPAIR", arXiv 2211.08403 (2023), whose code corrects the ends
        of Git Re-Basin's CIFAR-100 experiment in this way.
    """
    from scipy.optimize import minimize

    found, targets = _held_out(model, loader)
    classes = found.shape[-1]
    share = torch.bincount(targets, minlength=classes) / len(targets)
    if bool((share == 0).any()):
        raise EvaluationError(f"{_without(share)} no sample in the held-out data, so that no bias would be low enough")

    def loss(bias: Any) -> tuple[float, Any]:
        shifted = found + torch.as_tensor(bias)
        return float(F.cross_entropy(shifted, targets)), (shifted.softmax(-1).mean(0) - share).numpy()

    best = minimize(loss, np.zeros(classes), jac=True, method="BFGS", options={"gtol": 1e-8})
    bias = torch.as_tensor(best.x, dtype=torch.get_default_dtype())  # sums to 0, as the gradient does
    return Corrected(model, torch.ones((), dtype=bias.dtype), bias)


def correct_prior(
    model: nn.Module, train: Sequence[float] | Tensor, test: Sequence[float] | Tensor | None = None
) -> Corrected:
    r"""Correct the logits of a classifier for classes that are more or less common than where it was trained.

    .. math:: \log p(y | x) + \log p_\text{test}(y) - \log p_\text{train}(y) + \text{const}

    which is Bayes' rule where p(x | y) stays the same.

    Args:
        model: a classifier with logits of shape (batch, classes); it is not changed.
        train: how many samples of each class the model was trained on, or their shares.
        test: how many samples of each class there are where it is used, or their shares; by default equally many.

    Returns:
        A module around the model.

    Raises:
        SpecError: if numbers are not positive, or of another number of classes.

    Example:
        >>> correct_prior(nn.Identity(), train=[300, 100])(torch.zeros(1, 2)).softmax(-1)
        tensor([[0.2500, 0.7500]])

    Reference:
        Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities: A
        Simple Procedure", Neural Computation 14 (2002), Equation 4.
    """
    before = _shares(train, "train")
    after = torch.ones_like(before) if test is None else _shares(test, "test")
    if after.shape != before.shape:
        raise SpecError(
            f"train has {len(before)} classes and test {len(after)}; give a number for each class of the model"
        )
    bias = after.log() - before.log()
    bias = (bias - bias.mean()).to(torch.get_default_dtype())
    return Corrected(model, torch.ones((), dtype=bias.dtype), bias)


def _held_out(model: nn.Module, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    predictions = predict(model, loader)
    found, targets = labelled(predictions.outputs, predictions.targets)
    impossible = int(found.gather(-1, targets[:, None]).isneginf().sum())
    if impossible:
        raise EvaluationError(
            f"logits of -inf rule out the true class of {impossible} of {len(targets)} samples, so that the cross "
            "entropy is infinite whatever the correction; leave these samples out, or do not mask their classes"
        )
    return found, targets


def _shares(counts: Sequence[float] | Tensor, which: str) -> Tensor:
    values = torch.as_tensor(counts).detach().double().cpu()
    if values.ndim != 1 or not bool((values.isfinite() & (values > 0)).all()):
        what = (
            _without(values.nan_to_num(posinf=0.0)) + " none"
            if values.ndim == 1
            else f"it has shape {tuple(values.shape)}"
        )
        raise SpecError(
            f"{which} needs one positive number for each class, but {what}; if a class was never seen, add 1 to "
            "each count"
        )
    return values / values.sum()


def _without(shares: Tensor) -> str:
    missing = [str(i) for i in (~(shares > 0)).nonzero().flatten().tolist()]
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"class{'es' * (len(missing) > 1)} {', '.join(missing[:8])}{more} ha{'ve' if len(missing) > 1 else 's'}"
