"""How far probabilities are those with which a model is right."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoperm import Predictions, Reliability, reliability
from autoperm.calibration import Kind
from autoperm.errors import EvaluationError, SpecError

KINDS: tuple[Kind, ...] = ("one-vs-rest", "top-1")


def simulated(samples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities, and classes that are drawn with them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    return probabilities, torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def by_hand(probabilities: Tensor, targets: Tensor, kind: Kind, bins: int) -> list[tuple[float, float, int]]:
    """Mean, frequency and number of the predictions of each bin that is not empty, one prediction after the other."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(probabilities.tolist(), targets.tolist(), strict=True):
        best = max(range(len(row)), key=lambda k: row[k])
        for k in range(len(row)) if kind == "one-vs-rest" else [best]:
            # (low, high], with 0 in the first
            which = next(i for i in range(bins) if row[k] <= (i + 1) / bins or i == bins - 1)
            found.setdefault(which, []).append((row[k], k == target))
    return [
        (sum(p for p, _ in each) / len(each), sum(true for _, true in each) / len(each), len(each))
        for _, each in sorted(found.items())
    ]


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 20), st.sampled_from(KINDS), st.integers(0, 99))
def test_bins_are_those_counted_one_by_one(samples: int, classes: int, bins: int, kind: Kind, seed: int) -> None:
    probabilities, targets = simulated(samples, classes, seed)
    curve = reliability(probabilities, targets, kind=kind, bins=bins)
    rows = [row for row in zip(curve.confidence, curve.frequency, curve.count, strict=True) if row[2]]
    expected = by_hand(probabilities, targets, kind, bins)
    assert [row[2] for row in rows] == [row[2] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row[:2] == pytest.approx(other[:2])
    total = sum(curve.count)
    assert total == samples * (classes if kind == "one-vs-rest" else 1)
    ece = sum(n * abs(frequency - confidence) for confidence, frequency, n in expected) / total
    assert curve.ece == pytest.approx(ece)
    for low, high, confidence in zip(curve.edges, curve.edges[1:], curve.confidence, strict=False):
        assert confidence is None or low - 1e-12 <= confidence <= high + 1e-12
        if kind == "top-1" and confidence is not None:
            assert confidence >= 1 / classes - 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_predictions_have_a_small_error(kind: Kind) -> None:
    probabilities, targets = simulated(20000, 5)
    assert reliability(probabilities, targets, kind=kind).ece < 0.015
    sure = (3 * probabilities.log()).softmax(-1)
    assert reliability(sure, targets, kind=kind).ece > 0.05


def test_extremes_have_a_bin() -> None:
    curve = reliability(torch.eye(2), torch.tensor([0, 1]), bins=10)
    assert curve.count == (2, *[0] * 8, 2)
    assert (curve.confidence[0], curve.confidence[-1], curve.ece) == (0.0, 1.0, 0.0)
    assert curve.confidence[1] is None
    assert curve.frequency[1] is None


def test_a_value_on_an_edge_belongs_to_the_bin_below() -> None:
    halves = torch.full((1, 2), 0.5)
    assert reliability(halves, torch.tensor([0]), bins=2).count == (2, 0)


@given(st.integers(0, 99), st.sampled_from(KINDS))
def test_predictions_are_logits(seed: int, kind: Kind) -> None:
    probabilities, targets = simulated(50, 4, seed)
    shifted = probabilities.log() + 7
    logits = Predictions(shifted, targets)
    one, other = (
        reliability(logits, kind=kind),
        reliability(shifted.softmax(-1), targets, kind=kind),
    )
    assert one == other


def test_tokens_and_pixels_are_predictions_and_some_are_left_out() -> None:
    probabilities, targets = simulated(12, 3)
    flat = reliability(probabilities, targets)
    assert reliability(probabilities.view(3, 4, 3), targets.view(3, 4)) == flat
    pixels = probabilities.view(3, 4, 3).movedim(-1, 1)
    assert reliability(pixels, targets.view(3, 4)) == flat
    more = torch.cat([probabilities, probabilities[:2]]), torch.cat([targets, torch.tensor([-100, -100])])
    assert reliability(*more) == flat


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision(dtype: torch.dtype) -> None:
    probabilities, targets = simulated(500, 10)
    low = reliability(probabilities.to(dtype), targets, kind="top-1")
    assert low.ece == pytest.approx(reliability(probabilities, targets, kind="top-1").ece, abs=0.02)


def test_inputs_are_not_changed() -> None:
    probabilities, targets = simulated(5, 3)
    before = probabilities.clone()
    reliability(probabilities.requires_grad_(), targets)
    torch.testing.assert_close(probabilities.detach(), before, rtol=0, atol=0)


def test_faults_are_named() -> None:
    probabilities, targets = simulated(5, 3)
    with pytest.raises(EvaluationError, match=r"no probabilities: .* apply softmax"):
        reliability(probabilities.log(), targets)
    with pytest.raises(EvaluationError, match=r"sum to .* over the 3 classes"):
        reliability(probabilities / 2, targets)
    for odd in (nn.Identity(), {"test": Predictions(probabilities, targets)}):
        with pytest.raises(EvaluationError, match=r"are a (Identity|dict); give what predict\(model, loader\) returns"):
            reliability(odd)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="needs targets"):
        reliability(probabilities)
    with pytest.raises(EvaluationError, match="hold their own"):
        reliability(Predictions(probabilities, targets), targets)
    with pytest.raises(EvaluationError, match=r"\(5, 3\) and targets of shape \(4,\)"):
        reliability(probabilities, targets[:4])
    with pytest.raises(EvaluationError, match="from 0 to 3, but the outputs have 3 classes"):
        reliability(probabilities, torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(EvaluationError, match="no items"):
        reliability(probabilities, torch.full((5,), -100))
    with pytest.raises(EvaluationError, match="NaN"):
        reliability(probabilities * math.nan, targets)
    with pytest.raises(SpecError, match="'top-5' of reliability; choose from 'one-vs-rest', 'top-1'"):
        reliability(probabilities, targets, kind="top-5")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="bins is 0"):
        reliability(probabilities, targets, bins=0)


def test_json_and_rows() -> None:
    curve = reliability(*simulated(9, 3), bins=4)
    assert Reliability.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
    assert [row["count"] for row in curve.records()] == list(curve.count)


def test_bins_and_values_belong_together() -> None:
    with pytest.raises(SpecError, match="rise from 0 to 1"):
        Reliability((0.0, 0.5), (None,), (None,), (0,), "top-1")
    with pytest.raises(SpecError, match="frequency has 2 values for 1 bins"):
        Reliability((0.0, 1.0), (None,), (None, None), (0,), "top-1")
    assert Reliability((0.0, 1.0), (None,), (None,), (0,), "top-1").ece == 0.0
