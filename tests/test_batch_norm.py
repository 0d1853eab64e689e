"""BatchNorm statistics from data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autoperm.batch_norm import renormalize_batch_norm
from autoperm.errors import ArchitectureError, EvaluationError, SpecError


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def split(x: Tensor, size: int) -> list[Tensor]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def net(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels, momentum=0.3), nn.Dropout()).double()


def stats(model: nn.Module) -> tuple[Tensor, Tensor]:
    norm = list(model.children())[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def test_one_batch_gives_its_own_statistics() -> None:
    model, x = net(), random(5, 2, 6, 6)
    y: Tensor = model[0](x).detach()
    mean, var = stats(renormalize_batch_norm(model, [x]))
    torch.testing.assert_close(mean, y.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(var, y.var((0, 2, 3)), rtol=1e-12, atol=1e-14)


def test_several_batches_give_the_mean_of_their_statistics() -> None:
    model, x = net(), random(12, 2, 6, 6)
    y: Tensor = model[0](x).detach()
    mean, var = stats(renormalize_batch_norm(model, split(x, 4)))
    torch.testing.assert_close(mean, y.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    expected = torch.stack([batch.var((0, 2, 3)) for batch in split(y, 4)]).mean(0)
    torch.testing.assert_close(var, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mean_over_many_batches_in_half_precision(dtype: torch.dtype) -> None:
    x = 3 * torch.randn(300, 64, 1, generator=torch.Generator().manual_seed(0)) + 10
    norm = renormalize_batch_norm(nn.BatchNorm1d(1).to(dtype), list(x.to(dtype)))
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, x.mean(1).mean(0).to(dtype), rtol=1e-2, atol=0)
    torch.testing.assert_close(norm.running_var, x.var(1).mean(0).to(dtype), rtol=1e-2, atol=0)


def test_inputs_in_a_dictionary_are_passed_by_name() -> None:
    model, x = nn.BatchNorm1d(3).double(), random(5, 3)
    expected = renormalize_batch_norm(model, [x]).state_dict()
    for batch in ({"input": x}, ({"input": x}, torch.zeros(5))):
        torch.testing.assert_close(renormalize_batch_norm(model, [batch]).state_dict(), expected, rtol=0, atol=0)


def test_a_layer_that_is_called_twice_has_the_mean_of_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            both: Tensor = self.norm(x) + self.norm(3 * x)
            return both

    x = random(6, 2)
    model = renormalize_batch_norm(Twice().double(), [x])
    assert isinstance(model, Twice)
    torch.testing.assert_close(model.norm.running_mean, 2 * x.mean(0))
    torch.testing.assert_close(model.norm.running_var, 5 * x.var(0))


def test_a_second_time_changes_nothing() -> None:
    model, x = net(), random(5, 2, 6, 6)
    once = renormalize_batch_norm(model, [x])
    torch.testing.assert_close(renormalize_batch_norm(once, [x]).state_dict(), once.state_dict(), rtol=0, atol=0)


def test_later_layers_see_what_earlier_ones_put_out_in_training() -> None:
    x = random(8, 3)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    expected = copy.deepcopy(model).train()
    for norm in (expected[0], expected[2]):
        norm.momentum = None  # type: ignore[assignment]
    expected(x)
    result = renormalize_batch_norm(model, [x])
    torch.testing.assert_close(result.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-14)


def test_batches_limits_how_many_are_read() -> None:
    model, x = net(), random(12, 2, 6, 6)
    some = renormalize_batch_norm(model, split(x, 4), batches=2)
    torch.testing.assert_close(some.state_dict(), renormalize_batch_norm(model, split(x[:8], 4)).state_dict())


@pytest.mark.parametrize("extra", [(), (torch.zeros(5),), (torch.zeros(5), {"id": 1})])
def test_the_first_entry_of_a_batch_is_the_input(extra: tuple[object, ...]) -> None:
    model, x = net(), random(5, 2, 6, 6)
    result = renormalize_batch_norm(model, [(x, *extra)])
    torch.testing.assert_close(result.state_dict(), renormalize_batch_norm(model, [x]).state_dict())


def test_the_model_is_not_changed_and_modes_are_kept() -> None:
    model, x = net(), random(5, 2, 6, 6)
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    result = renormalize_batch_norm(model, [x])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for item in (model, result):
        assert [module.training for module in item.modules()] == modes == [True, True, False, True]
        norm = list(item.modules())[2]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum == 0.3
        assert not norm._forward_pre_hooks


def test_only_batch_norm_is_in_training_mode() -> None:
    seen: list[bool] = []

    class Watch(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(x)

    renormalize_batch_norm(nn.Sequential(Watch(), nn.BatchNorm1d(3)).double(), [random(4, 3)])
    assert seen == [False]


def test_a_layer_that_is_not_called_keeps_its_statistics() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(input=x)
            return out

    model = Branch().double()
    model.unused.running_mean = torch.full((3,), 7.0, dtype=torch.float64)
    result = renormalize_batch_norm(model, [random(4, 3)]).state_dict()
    torch.testing.assert_close(result["unused.running_mean"], model.unused.running_mean)
    torch.testing.assert_close(result["used.running_mean"], random(4, 3).mean(0))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2)])
def test_a_model_without_statistics(model: nn.Module) -> None:
    with pytest.raises(ArchitectureError, match="no BatchNorm layer with running statistics"):
        renormalize_batch_norm(model, [torch.zeros(3, 2)])


def test_an_empty_loader() -> None:
    with pytest.raises(EvaluationError, match="no batches"):
        renormalize_batch_norm(net(), [])


def test_a_single_value_per_channel_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(EvaluationError, match=r"BatchNorm layer '1' \(input of shape \(1, 3\)\)"):
        renormalize_batch_norm(model, [random(1, 3)])


def test_a_single_image_is_enough_if_it_has_several_pixels() -> None:
    renormalize_batch_norm(net(), [random(1, 2, 6, 6)])


def test_batches_must_be_positive() -> None:
    with pytest.raises(SpecError, match="batches is 0"):
        renormalize_batch_norm(net(), [random(5, 2, 6, 6)], batches=0)
