"""What a layer may be fed: shapes, from its weights."""

from __future__ import annotations

from torch import nn

from .sketch import Sketch

BATCH = 2
LENGTHS = (16, 32, 64, 128, 256, 1024, 8, 4, 16000)
SIDES = (64, 224, 32, 28, 96, 128, 256, 299, 16, 8, 512)
_CUBES = (16, 32, 64, 8)


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


def resized(sketch: Sketch, ratio: float) -> Sketch | None:
    """Return a sketch whose trailing axes together have about ``ratio`` times their positions.

    The first two axes are the batch and the channels; None if there are no others, or nothing would change.
    """
    sides = sketch.shape[2:]
    if not sides or sketch.kind != "normal":
        return None
    scaled = tuple(max(1, round(n * ratio ** (1 / len(sides)))) for n in sides)
    if scaled == sides or max(scaled) > 4096:
        return None
    return Sketch((*sketch.shape[:2], *scaled))
