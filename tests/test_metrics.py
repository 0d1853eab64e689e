"""Ready-made metrics: cross entropy, top-k accuracy, perplexity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from autoperm.errors import EvaluationError
from autoperm.evaluate import Evaluator
from autoperm.metrics import cross_entropy, perplexity, top


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_of_samples_tokens_and_pixels() -> None:
    for output, target, swapped in (
        (scores(6, 4), classes(4, 6), scores(6, 4)),
        (scores(6, 3, 4), classes(4, 6, 3), scores(6, 3, 4).movedim(-1, 1)),
        (scores(6, 4, 2, 3), classes(4, 6, 2, 3), scores(6, 4, 2, 3)),
    ):
        expected = F.cross_entropy(swapped, target, reduction="none").flatten()
        torch.testing.assert_close(cross_entropy(output, target), expected)


def test_classes_are_last_where_both_axes_would_fit() -> None:
    output, target = scores(2, 4, 4), classes(4, 2, 4)
    expected = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy(output, target), expected)


def test_probabilities_as_targets() -> None:
    output, target = scores(5, 3), scores(5, 3, seed=2).softmax(1)
    torch.testing.assert_close(cross_entropy(output, target).mean(), F.cross_entropy(output, target))


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 20))
def test_perplexity_leaves_ignored_tokens_out(sentences: int, batch_size: int, seed: int) -> None:
    output, target = scores(sentences, 5, 7, seed=seed), classes(7, sentences, 5, seed=seed)
    target[classes(2, sentences, 5, seed=seed + 1) == 1] = -100
    target[0, 0] = 3
    expected = math.exp(F.cross_entropy(output.flatten(0, 1), target.flatten()))
    evaluate = Evaluator.from_tensors(output, target, metrics={"perplexity": perplexity}, batch_size=batch_size)
    assert evaluate(nn.Identity())["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_a_batch_of_ignored_tokens_counts_for_nothing() -> None:
    some, none = (scores(2, 3), classes(3, 2)), (scores(2, 3), torch.full((2,), -100))
    assert Evaluator([some, none])(nn.Identity()) == Evaluator([some])(nn.Identity())
    with pytest.raises(EvaluationError, match="metric 'loss' has no items"):
        Evaluator([none])(nn.Identity())


@given(st.integers(1, 6), st.integers(0, 20))
def test_top_k_counts_the_targets_among_the_largest(k: int, seed: int) -> None:
    output, target = scores(8, 6, seed=seed), classes(6, 8, seed=seed)
    target[3] = -100
    better = (output > output.gather(1, target.clamp(min=0)[:, None])).sum(1)
    torch.testing.assert_close(top(k).of(output, target), (better < k)[target != -100])


def test_top_k_of_tokens() -> None:
    output, target = scores(3, 4, 6), classes(6, 3, 4)
    torch.testing.assert_close(top(2).of(output, target), top(2).of(output.flatten(0, 1), target.flatten()))


def test_what_does_not_fit() -> None:
    with pytest.raises(EvaluationError, match="k is 0"):
        top(0)
    with pytest.raises(EvaluationError, match="the 5 largest outputs are asked for, but there are 3 classes"):
        top(5).of(scores(2, 3), classes(3, 2))
    with pytest.raises(EvaluationError, match=r"shape \(2, 3\) and targets of shape \(3,\) do not fit"):
        cross_entropy(scores(2, 3), classes(3, 3))
    for output, target in ((scores(4), torch.rand(4)), (scores(4, 3), torch.rand(4)), (scores(2, 3), torch.rand(3, 2))):
        with pytest.raises(EvaluationError, match="do not fit; targets that are no integers are probabilities, of"):
            cross_entropy(output, target)
    with pytest.raises(EvaluationError, match=r"type torch\.bool, but must be classes"):
        top(1).of(scores(2, 3), torch.tensor([True, False]))
    with pytest.raises(EvaluationError, match=r"the model returned a tuple, but must return a tensor.*\.logits"):
        cross_entropy((scores(2, 3),), classes(3, 2))
