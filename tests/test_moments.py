"""Second moments, streamed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from autoperm.activations.moments import Moments
from autoperm.errors import AutopermError


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments_of(a: Tensor, b: Tensor, cuts: Sequence[int] = ()) -> Moments:
    moments = Moments()
    for left, right in zip([0, *cuts], [*cuts, a.shape[-1]], strict=True):
        moments.add(a[..., left:right], b[..., left:right])
    return moments


def test_they_are_what_numpy_says() -> None:
    a, b = draw(0, 4, 50), draw(1, 5, 50) + 2
    moments = moments_of(a, b)
    both = np.concatenate([a, b])
    assert_close(moments.second("uncentred"), a @ b.T / 50)
    assert_close(moments.second("covariance"), torch.from_numpy(np.cov(both, bias=True)[:4, 4:]))
    assert_close(moments.second("pearson"), torch.from_numpy(np.corrcoef(both)[:4, 4:]))
    assert_close(moments.mean_a, a.mean(1))
    assert_close(moments.mean_b, b.mean(1))
    assert_close(moments.var_a, a.var(1, correction=0))
    assert_close(moments.var_b, b.var(1, correction=0))


@given(st.lists(st.integers(0, 30), max_size=4).map(sorted), st.integers(0, 3))
def test_batches_say_what_all_the_data_says_at_once(cuts: list[int], seed: int) -> None:
    a, b = draw(seed, 2, 4, 30) + 3, draw(seed + 9, 2, 5, 30)
    one, many = moments_of(a, b), moments_of(a, b, cuts)
    assert one.count == many.count == 30
    for kind in ("uncentred", "covariance", "pearson"):
        assert_close(many.second(kind), one.second(kind))
    assert_close(many.var_a, one.var_a)
    assert_close(many.var_b, one.var_b)


def test_large_means_cost_no_digits() -> None:
    a, b = draw(0, 3, 400), draw(1, 3, 400)
    exact = moments_of(a, b).second("covariance")
    shifted = moments_of((a + 1000).float(), (b - 1000).float(), [50, 300])
    assert_close(shifted.second("covariance"), exact, rtol=0, atol=1e-3)


def test_a_dead_unit_correlates_with_nothing() -> None:
    a, b = draw(0, 3, 40, dtype=torch.float32), draw(1, 3, 40, dtype=torch.float32)
    a[1], b[2] = 0.1, 0
    found = moments_of(a, b, [7]).second("pearson")
    assert_close(found[1], torch.zeros(3, dtype=torch.float64))
    assert_close(found[:, 2], torch.zeros(3, dtype=torch.float64))
    assert (found[[0, 2]][:, :2] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_summed_in_more(dtype: torch.dtype) -> None:
    a, b = draw(0, 3, 5000).to(dtype), draw(1, 3, 5000).to(dtype)
    cuts = list(range(10, 5000, 10))
    assert_close(moments_of(a, b, cuts).second("uncentred"), a.double() @ b.double().T / 5000, rtol=0, atol=1e-6)


def test_what_cannot_be_said() -> None:
    moments = Moments()
    moments.add(torch.empty(2, 0), torch.empty(2, 0))
    with pytest.raises(AutopermError, match="no samples"):
        moments.second("pearson")
    moments.add(torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(AutopermError, match="no moment 'spearman'"):
        moments.second("spearman")
