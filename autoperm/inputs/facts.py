"""What a model's configuration says, wherever in it that stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_CONFIGS = ("config", "cfg", "hparams", "pretrained_cfg", "default_cfg")
_SPECIAL = ("_token_id", "_token_index", "_token_ids")


class Facts:
    """A model and its configuration: an object with attributes or a mapping, which may hold others.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> model.config = {"vocab_size": 9, "vision_config": {"image_size": 32}}
        >>> Facts(model).number("image_size")
        32
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        found = (_attribute(model, name) for name in _CONFIGS)
        self.configs = [config for config in found if _is_config(config)]

    def get(self, *names: str, inside: str = "") -> Any:
        """Return what the configuration has under the first of some names, or None.

        Args:
            names: custom has several names for most things.
            inside: look first in the parts of the configuration whose name has this word.
        """
        parts = [part for config in self.configs for part in _parts("", config, depth=3)]
        if inside:
            parts.sort(key=lambda part: inside not in part[0])  # stable: else from the outside in
        for name in names:
            for _, part in parts:
                value = _attribute(part, name)
                if value is not None:
                    return value
        return None

    def number(self, *names: str, inside: str = "", default: int = 0) -> int:
        """Return a whole number of the configuration: the largest, where there is one for each of several things."""
        value = self.get(*names, inside=inside)
        if isinstance(value, (list, tuple)) and value and all(isinstance(n, (int, float)) for n in value):
            value = max(value)
        return int(value) if isinstance(value, (int, float)) else default

    def pair(self, *names: str, inside: str = "") -> tuple[int, int] | None:
        """Return a height and a width, written as one number, as two, or by name."""
        value = self.get(*names, inside=inside)
        if isinstance(value, Mapping):
            value = [value.get("height", value.get("shortest_edge")), value.get("width", value.get("shortest_edge"))]
        if isinstance(value, int) and not isinstance(value, bool):
            return value, value
        if isinstance(value, (list, tuple)) and len(value) >= 2 and all(isinstance(n, int) for n in value[-2:]):
            return value[-2], value[-1]
        return None

    @property
    def special_tokens(self) -> frozenset[int]:
        """Indices that stand for something else than a word or a part of one."""
        found: set[int] = set()
        for config in self.configs:
            for _, part in _parts("", config, depth=3):
                for name, value in _items(part):
                    if name.endswith(_SPECIAL):
                        values = value if isinstance(value, (list, tuple)) else [value]
                        found.update(n for n in values if isinstance(n, int) and n >= 0)
        return frozenset(found)


def _attribute(owner: Any, name: str) -> Any:
    if isinstance(owner, Mapping):
        return owner.get(name)
    try:
        return getattr(owner, name, None)
    except Exception:  # a property of the user's that fails is no answer
        return None


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    items = config.items() if isinstance(config, Mapping) else vars(config).items()
    return ((name, value) for name, value in items if isinstance(name, str) and not name.startswith("_"))


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) or (hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)))


def _parts(name: str, config: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """A configuration and those that it holds, from the outside in, with their names."""
    yield name, config
    if depth:
        inner = [
            (key, value) for key, value in _items(config) if _is_config(value) and not key.startswith(("id2", "label2"))
        ]
        for key, value in inner:
            yield from _parts(f"{name}.{key}", value, depth - 1)
