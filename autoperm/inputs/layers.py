"""What a layer may be fed: shapes, from its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .sketch import Sketch

BATCH = 2
LENGTHS = (16, 32, 64, 128, 8, 256, 4, 1024, 16000)
SIDES = (64, 224, 32, 28, 96, 128, 256, 299, 16, 8, 512)
_CUBES = (16, 32, 64, 8)
_MOST_POSITIONS = 4096


def accepted(layer: nn.Module) -> list[Sketch] | None:
    """List what a layer may be fed, likelier and smaller first; None for a layer that says nothing of its input.

    Example:
        >>> accepted(nn.Linear(7, 3))[0].shape
        (2, 7)
    """
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        shapes = [(BATCH, n) for n in LENGTHS]
        return [Sketch(shape, "indices", high=layer.num_embeddings) for shape in [*shapes, (BATCH,)]]
    if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        return [Sketch((BATCH, layer.in_channels, n)) for n in LENGTHS]
    if isinstance(layer, nn.ConvTranspose2d):  # it makes images from codes, which are small
        return [Sketch((BATCH, layer.in_channels, n, n)) for n in (1, 4, 8, 16)] + [Sketch((BATCH, layer.in_channels))]
    if isinstance(layer, nn.Conv2d):
        return [Sketch((BATCH, layer.in_channels, n, n)) for n in SIDES]
    if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        return [Sketch((BATCH, layer.in_channels, n, n, n)) for n in _CUBES]
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return [Sketch((BATCH, 5, layer.input_size)), Sketch((BATCH, layer.input_size))]
    if isinstance(layer, nn.MultiheadAttention):
        return [Sketch((BATCH, 5, layer.embed_dim))]
    if isinstance(layer, nn.Bilinear):
        return [Sketch((BATCH, layer.in1_features))]
    if isinstance(layer, nn.Linear):
        n = layer.in_features
        images = []
        for channels in (1, 3):
            side = round((n / channels) ** 0.5)
            if side > 1 and channels * side * side == n:
                images.append(Sketch((BATCH, channels, side, side)))
        return [Sketch((BATCH, n)), Sketch((BATCH, 5, n)), *images]
    return None


def features(layer: nn.Module) -> tuple[int, int] | None:
    """Return which axis of its input holds a layer's features, counted from the end, and how many it takes."""
    if isinstance(layer, nn.Linear):
        return -1, layer.in_features
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return -1, layer.input_size
    if isinstance(layer, nn.MultiheadAttention):
        return -1, layer.embed_dim
    if isinstance(layer, _ConvNd):
        return -1 - len(layer.kernel_size), layer.in_channels
    return None


def reshaped(sketch: Sketch, layer: nn.Module, fed: tuple[int, ...]) -> Iterator[Sketch]:
    """Yield changes of an input after which a layer may get what it takes.

    Args:
        sketch: the input as it was.
        layer: what broke on it.
        fed: the shape of what the layer was fed, computed from the input.
    """
    if len(fed) == len(sketch.shape) + 1:  # the model adds an axis of its own
        for other in accepted(layer) or ():
            if len(other.shape) > 2:
                yield replace(other, shape=(other.shape[0], *other.shape[2:]))
    if len(fed) == len(sketch.shape) - 1:  # the model merges two axes, such as those of examples and of moments
        for other in accepted(layer) or ():
            yield replace(other, shape=(other.shape[0], 4, *other.shape[1:]))
    wanted = features(layer)
    if wanted is None or len(fed) < -wanted[0] or fed[wanted[0]] == wanted[1]:
        return
    found, size = fed[wanted[0]], wanted[1]
    for axis in reversed(range(1, len(sketch.shape))):
        if sketch.shape[axis] == found:
            yield replace(sketch, shape=(*sketch.shape[:axis], size, *sketch.shape[axis + 1 :]))
    sides = sketch.shape[2:]
    if sides and len(fed) < len(sketch.shape):  # all positions were laid out in a row
        scale = (size / max(1, found)) ** (1 / len(sides))
        scaled = tuple(max(1, round(n * scale)) for n in sides)
        if max(scaled) <= _MOST_POSITIONS:
            yield replace(sketch, shape=(*sketch.shape[:2], *scaled))
