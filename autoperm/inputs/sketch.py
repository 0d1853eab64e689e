"""A tensor to be drawn: what a candidate input looks like before it has values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketch:
    """An input's shape and the kind of its values.

    Attributes:
        shape: its shape.
        kind: ``"normal"`` or ``"uniform"`` floating-point values; ``"indices"`` below ``high``; ``"ones"``, a mask that
            hides nothing; ``"range"``, the positions along the last axis; ``"boxes"``, corners below ``high`` that lie
            in order.
        high: the number of different indices.
        avoid: indices that are not drawn, such as those of special tokens.
        last: the index to which the last axis ends, such as an end-of-sequence token; none if negative.

    Example:
        >>> Sketch((2, 5), "indices", high=7).draw(0, torch.device("cpu"), torch.float32).dtype
        torch.int64
    """

    shape: tuple[int, ...]
    kind: Literal["normal", "uniform", "indices", "ones", "range", "boxes"] = "normal"
    high: int = 0
    avoid: frozenset[int] = frozenset()
    last: int = -1

    def of_batch(self, size: int) -> Sketch:
        """Return the same for another number of examples."""
        return replace(self, shape=(size, *self.shape[1:]))

    def below(self, high: int) -> Sketch:
        """Return the same with fewer different indices."""
        avoid = frozenset(index for index in self.avoid if index < high)
        return replace(self, high=high, avoid=avoid, last=self.last if self.last < high else -1)

    def draw(self, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Draw values: the same ones for the same seed, whatever was drawn before."""
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "normal":
            return torch.randn(self.shape, generator=generator).to(device, dtype)
        if self.kind == "uniform":
            return torch.rand(self.shape, generator=generator).to(device, dtype)
        if self.kind == "ones":
            return torch.ones(self.shape, dtype=torch.int64, device=device)
        if self.kind == "range":
            return torch.arange(self.shape[-1], device=device).expand(self.shape).contiguous()
        if self.kind == "boxes":
            corners = torch.randint(0, self.high, (2, *self.shape[:-1], 2), generator=generator)
            return torch.cat([corners.amin(0), corners.amax(0)], -1).to(device)
        allowed = torch.tensor([i for i in range(min(self.high, 1 << 16)) if i not in self.avoid] or [0])
        values = allowed[torch.randint(0, len(allowed), self.shape, generator=generator)]
        if self.last >= 0:
            values[..., -1] = self.last
        return values.to(device)
