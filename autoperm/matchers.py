"""The matchers by name, and how models are handed to them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .activations import ActivationMatching
from .errors import MatcherError, quoted
from .evaluate import Loss
from .matching import (
    ManyMatcher,
    ManyModelMatcher,
    Matcher,
    MergeMany,
    ModelMatcher,
    SimulatedAnnealing,
    Sinkhorn,
    StraightThrough,
    ToReference,
    Universe,
    exhaustive_matching,
    frank_wolfe,
    graduated_assignment,
    greedy_matching,
    identity_matching,
    weight_matching,
)
from .matching.match import name_of
from .state import tensors

AnyMatcher = Matcher | ModelMatcher
AnyManyMatcher = ManyMatcher | ManyModelMatcher


@dataclass(frozen=True)
class _Entry:
    """How a matcher is made: with which of data, loss and progress, and which of those it cannot do without."""

    make: Callable[..., Any]
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_MATCHERS: dict[str, _Entry] = {
    "weight": _Entry(partial(partial, weight_matching), takes=("progress",)),
    "graduated": _Entry(partial(partial, graduated_assignment), takes=("progress",)),
    "frank-wolfe": _Entry(partial(partial, frank_wolfe), takes=("progress",)),
    "activation": _Entry(ActivationMatching, takes=("data", "progress"), needs=("data",)),
    "straight-through": _Entry(StraightThrough, takes=("data", "loss", "progress"), needs=("data", "loss")),
    "sinkhorn": _Entry(
        partial(Sinkhorn, objective="random"), takes=("data", "loss", "progress"), needs=("data", "loss")
    ),
    "identity": _Entry(partial(partial, identity_matching)),
    "greedy": _Entry(partial(partial, greedy_matching)),
    "annealing": _Entry(SimulatedAnnealing, takes=("data", "loss", "progress")),
    "exhaustive": _Entry(partial(partial, exhaustive_matching), takes=("progress",)),
}

_MANY_MATCHERS: dict[str, _Entry] = {
    "merge-many": _Entry(MergeMany, takes=("progress",)),
    "universe": _Entry(Universe, takes=("progress",)),
    "reference": _Entry(ToReference),
}


def get_matcher(
    matcher: str | AnyMatcher,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> AnyMatcher:
    """Return the matcher of a name, made with the data and loss that it needs; another matcher is returned as it is.

    Args:
        matcher: a name, or a matcher.
        data: batches, for a name whose matcher reads data.
        loss: ``loss(output, target)``, the mean over the batch, for a name whose matcher needs it.
        progress: show a progress bar, if the matcher has one.

    Raises:
        MatcherError: for a name that no matcher has, or data and loss that are missing or would not be used.

    Example:
        >>> get_matcher("weight", data=[])
        Traceback (most recent call last):
        autoperm.errors.MatcherError: matcher 'weight' needs no data
    """
    if isinstance(matcher, str):
        made: AnyMatcher = _make(_MATCHERS, matcher, data, loss, progress)
        return made
    _check_unused(data, loss)
    _check_instance(matcher)
    if isinstance(matcher, ManyMatcher | ManyModelMatcher) and not callable(matcher):
        raise MatcherError(f"a {type(matcher).__name__} object is for align_many")
    if not callable(matcher) and not isinstance(matcher, ModelMatcher):
        raise MatcherError(
            f"a {type(matcher).__name__} object is no matcher: it must be a name ({quoted(_MATCHERS)}) or a callable "
            "(spec, params_a, params_b) -> Permutation"
        )
    return matcher


def get_many_matcher(
    matcher: str | AnyMatcher | AnyManyMatcher,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> AnyManyMatcher:
    """Return the matcher of many models of a name; a matcher of pairs is applied to each model and the first.

    Args:
        matcher: a name of a matcher of many models or of pairs, or such a matcher.
        data: as for :func:`get_matcher`.
        loss: as for :func:`get_matcher`.
        progress: show a progress bar, if the matcher has one.

    Raises:
        MatcherError: for a name that no matcher has, or data and loss that are missing or would not be used.

    Example:
        >>> get_many_matcher("greedy").reference
        0
    """
    if isinstance(matcher, str) and matcher in _MANY_MATCHERS:
        made: AnyManyMatcher = _make(_MANY_MATCHERS, matcher, data, loss, progress)
        return made
    if isinstance(matcher, str) and matcher not in _MATCHERS:
        raise _unknown(matcher, {**_MANY_MATCHERS, **_MATCHERS})
    _check_instance(matcher)
    if isinstance(matcher, ManyMatcher | ManyModelMatcher):
        _check_unused(data, loss)
        return matcher
    return ToReference(get_matcher(matcher, data=data, loss=loss, progress=progress))


def takes(name: str, option: str) -> bool:
    """Whether the matcher of a name takes ``data`` or ``loss``.

    Raises:
        MatcherError: for a name that no matcher has.

    Example:
        >>> takes("activation", "data"), takes("weight", "data")
        (True, False)
    """
    entries = {**_MANY_MATCHERS, **_MATCHERS}
    if name not in entries:
        raise _unknown(name, entries)
    return option in entries[name].takes


def is_for_many(matcher: object) -> bool:
    """Whether a matcher, or the one of a name, matches many models at once.

    Example:
        >>> is_for_many("universe"), is_for_many("weight")
        (True, False)
    """
    return (
        matcher in _MANY_MATCHERS if isinstance(matcher, str) else isinstance(matcher, ManyMatcher | ManyModelMatcher)
    )


def bind(matcher: AnyMatcher, model_a: nn.Module, model_b: nn.Module) -> Matcher:
    """Return a matcher of tensors: one that runs models gets these."""
    return matcher.bind(model_a, model_b) if isinstance(matcher, ModelMatcher) else matcher


def bind_many(matcher: AnyManyMatcher, models: Sequence[nn.Module]) -> ManyMatcher:
    """Return a matcher of many models' tensors: one that runs models gets these."""
    return matcher.bind_many(models) if isinstance(matcher, ManyModelMatcher) else matcher


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return what matchers get of a model: its parameters by all their names, without gradients."""
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


@contextmanager
def unchanged(models: Mapping[str, nn.Module], matcher: object) -> Generator[None, None, None]:
    """Check that a matcher does not write to the models within the block.

    Args:
        models: by what the message calls them.
        matcher: the matcher or its name, for the message.

    Raises:
        MatcherError: naming the tensors that it wrote to.
    """
    states = {which: tensors(model) for which, model in models.items()}
    before = {which: _versions(state) for which, state in states.items()}
    yield
    for which, state in states.items():
        changed = [name for name, version in _versions(state).items() if version != before[which][name]]
        if changed:
            raise MatcherError(
                f"matcher {name_of(matcher)!r} has changed {which} in place: {', '.join(changed[:5])}. Load the model "
                "again, and let the matcher work on copies"
            )


def _versions(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Count how often each tensor was written to in place; those made in inference mode do not count."""
    return {name: tensor._version for name, tensor in state.items() if not tensor.is_inference()}


def _make(entries: Mapping[str, _Entry], name: str, data: object, loss: object, progress: bool) -> Any:
    if name not in entries:
        raise _unknown(name, entries)
    entry = entries[name]
    given = {"data": data, "loss": loss}
    for option, value in given.items():
        if value is None and option in entry.needs:
            needs = " and ".join(f"{needed}=..." for needed in entry.needs)
            raise MatcherError(f"matcher {name!r} needs {needs}; {option} is missing")
        if value is not None and option not in entry.takes:
            raise MatcherError(f"matcher {name!r} needs no {option}")
    options = {**{option: value for option, value in given.items() if value is not None}, "progress": progress}
    return entry.make(**{option: value for option, value in options.items() if option in entry.takes})


def _unknown(name: str, entries: Mapping[str, _Entry]) -> MatcherError:
    many = f"; {name!r} is for align_many" if name in _MANY_MATCHERS else ""
    return MatcherError(f"no matcher is called {name!r}; there are {quoted(entries)}{many}")


def _check_unused(data: object, loss: object) -> None:
    for option, value in {"data": data, "loss": loss}.items():
        if value is not None:
            raise MatcherError(f"{option} is for a matcher that is named by a string; give it to the matcher itself")


def _check_instance(matcher: object) -> None:
    if isinstance(matcher, type):
        raise MatcherError(f"{matcher.__name__} is a class; make a matcher of it: {matcher.__name__}(...)")
