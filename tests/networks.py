"""Small networks, each with the symmetries it has by theory.

``groups`` lists the symmetric factors as sorted pairs (size, copies): S_size, once for each of ``copies`` positions
that it may vary over. Heads of 8 channels within 3 heads are (8, 3). Axes of inputs and outputs are pinned, and with
them batch, time, space and vocabulary. What no structure can know is not counted: a softmax ignores
the bias of the keys, an instance norm the bias before it. Without them these networks have a few larger symmetries of
their parameters (any permutation of such a bias alone), which no permutation of hidden units explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Groups = list[tuple[int, int]]
Factory = TypeVar("Factory", bound=Callable[[], nn.Module])


@dataclass(frozen=True)
class Network:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    groups: Groups


NETWORKS: dict[str, Network] = {}
"""Double precision, eval mode, random weights: exact to about 1e-13."""

LARGE: dict[str, Network] = {}
"""Standard sizes in single precision with torch's own initial weights: for orders of groups and for timing."""


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, and the statistics of every norm, values that are neither zero nor one nor equal.

    Other buffers (masks, rotary tables) are constants of the architecture and stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, name: str) -> None:
        noise = partial(torch.randn, tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            tensor.copy_(noise() * (tensor.shape[0] / tensor.numel()) ** 0.5)
        elif "bias" in name or "mean" in name:
            tensor.copy_(0.5 * noise())
        else:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))

    for name, parameter in model.named_parameters():
        fill(parameter, name.rpartition(".")[2])
    for module in model.modules():
        if "Norm" in type(module).__name__:
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    fill(buffer, name)
    return model


def log10_order(groups: Groups) -> float:
    return sum(copies * math.lgamma(size + 1) for size, copies in groups) / math.log(10)


def floats(*shape: int, dtype: torch.dtype = torch.float64) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype),)


def tokens(*shape: int, vocab: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1)),)


def network(
    name: str, inputs: Callable[[], tuple[Tensor, ...]], groups: Groups, seed: int = 0
) -> Callable[[Factory], Factory]:
    """Register a network. The seeds are chosen so that no two neighbouring units are dead for all inputs."""

    def register(factory: Factory) -> Factory:
        NETWORKS[name] = Network(name, lambda: randomize(factory().double().eval(), seed), inputs, sorted(groups))
        return factory

    return register


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


# ------------------------------------------------------------------------------------------------ dense layers


@network("mlp", floats(3, 6), [(12, 1), (10, 1), (8, 1)], seed=8)
def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)
    )


@network("mlp_functional", floats(3, 6), [(12, 1), (10, 1)])
class MlpFunctional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(torch.relu(self.fc1(x)))))


@network("residual_mlp", floats(3, 6), [(12, 1), (16, 1), (20, 1)], seed=8)
def residual_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12),
        Residual(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)),
        Residual(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)),
        nn.Linear(12, 4),
    )


@network("mlp_batchnorm1d", floats(3, 6), [(12, 1), (10, 1)])
def mlp_batchnorm1d() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(),
        nn.Linear(10, 4),
    )  # fmt: skip


@network("layernorm_mlp", floats(3, 6), [(12, 1), (10, 1)])
def layernorm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 4)
    )


@network("weight_norm_mlp", floats(3, 6), [(12, 1), (10, 1)])
def weight_norm_mlp() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Linear(6, 12)), nn.ReLU(), weight_norm(nn.Linear(12, 10)), nn.ReLU(), nn.Linear(10, 4)
    )


@network("shared_layer", floats(3, 6), [(12, 1)])
class SharedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lin, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.lin(torch.relu(self.lin(self.emb(x))))))


@network("tied_embedding", tokens(3, 5, vocab=11), [(12, 1), (16, 1)])
class TiedEmbedding(nn.Module):
    """No residual: only the tie makes the channels before and after the MLP one factor."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc1, self.fc2 = nn.Embedding(11, 12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.fc2(F.gelu(self.fc1(self.emb(ids)))))


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


@network("swiglu", floats(3, 5, 6), [(12, 1), (20, 1)])
def swiglu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), Residual(RMSNorm(12), SwiGLU(12, 20)), RMSNorm(12), nn.Linear(12, 4))


@network("mixture_dense", floats(3, 6), [(10, 1), (5, 1), (7, 5)])
class MixtureDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, 10), nn.Linear(10, 5), nn.Linear(10, 4)
        self.w1, self.b1 = nn.Parameter(torch.empty(5, 10, 7)), nn.Parameter(torch.empty(5, 7))
        self.w2, self.b2 = nn.Parameter(torch.empty(5, 7, 10)), nn.Parameter(torch.empty(5, 10))

    def weights(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = F.gelu(torch.einsum("bc,ecf->bef", x, self.w1) + self.b1)
        experts = torch.einsum("bef,efc->bec", hidden, self.w2) + self.b2
        return self.head(x + torch.einsum("be,bec->bc", self.weights(x), experts))


@network("mixture_topk", floats(64, 6), [(10, 1), (5, 1), (7, 5)])
class MixtureTopK(MixtureDense):
    def weights(self, x: Tensor) -> Tensor:
        chosen = super().weights(x).topk(2)
        return torch.zeros(len(x), 5, dtype=x.dtype).scatter(1, chosen.indices, chosen.values)


@network("quantiser", floats(512, 6), [(8, 1), (9, 1), (12, 1)])
class Quantiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8))
        self.codebook, self.decoder = nn.Embedding(9, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        code = self.codebook(torch.cdist(z, self.codebook.weight).argmin(-1))
        return self.decoder(z + (code - z).detach())


# ------------------------------------------------------------------------------------------------ convolutions


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


@network("vgg", floats(2, 3, 16, 16), [(8, 1), (12, 1), (16, 1), (20, 1)])
def vgg() -> nn.Module:
    """The columns of the first dense layer are permuted in blocks of 4, one block for each channel's 2x2 map."""
    features = [
        layer
        for i, o in [(3, 8), (8, 12), (12, 16)]
        for layer in [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.LeakyReLU(0.1), nn.MaxPool2d(2)]
    ]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(64, 20), nn.LeakyReLU(0.1), nn.Linear(20, 4))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, hidden, 3, stride), nn.ReLU(), *conv_bn(hidden, outputs))
        project = inputs != outputs or stride != 1
        self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


@network("residual_cnn", floats(2, 3, 8, 8), [(8, 1), (10, 1), (12, 1), (16, 1)])
def residual_cnn() -> nn.Module:
    return nn.Sequential(
        *conv_bn(3, 8), nn.ReLU(), BasicBlock(8, 10, 8), BasicBlock(8, 12, 16, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@network("depthwise_groupnorm", floats(2, 3, 6, 6), [(4, 1), (4, 4)])
def depthwise_groupnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )  # fmt: skip


@network("groupnorm", floats(2, 3, 6, 6), [(4, 1), (3, 4)])
def groupnorm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 4, 3))


@network("instance_norm", floats(2, 3, 6, 6), [(12, 1)])
def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(), nn.Conv2d(12, 4, 3)
    )


@network("grouped_conv", floats(2, 3, 6, 6), [(4, 1), (3, 4), (5, 4)])
def grouped_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(20, 4, 3)
    )


@network("prelu", floats(2, 3, 6, 6), [(8, 1), (10, 1)], seed=3)
def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), GlobalMean(), nn.Linear(8, 10), nn.PReLU(10), nn.Linear(10, 4)
    )


@network("conv1d", floats(2, 3, 12), [(8, 1), (10, 1)])
def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.GELU(), nn.MaxPool1d(2), nn.Conv1d(8, 10, 3, dilation=2), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip


@network("conv3d", floats(2, 2, 6, 6, 6), [(6, 1), (8, 1)])
def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(6, 8, 3, padding=1),
        nn.ReLU(), GlobalMean(), nn.Linear(8, 4),
    )  # fmt: skip


@network("dense_concat", floats(2, 3, 6, 6), [(6, 1), (5, 1), (4, 1)])
class DenseConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in [(3, 6), (9, 5), (14, 4)])
        self.head = nn.Linear(18, 7)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat([x, torch.relu(conv(x))], dim=1)
        return self.head(x.mean((2, 3)))


@network("unet", floats(2, 3, 8, 8), [(8, 1), (12, 1), (10, 1), (9, 1)])
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.dec, self.out = nn.Conv2d(18, 9, 3, padding=1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enc1(x))
        x = torch.relu(self.enc2(F.max_pool2d(skip, 2)))
        return self.out(torch.relu(self.dec(torch.cat([skip, self.up(x)], dim=1))))


# -------------------------------------------------------------------------------------------------- recurrence


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module, width: int, mean: bool = False) -> None:
        super().__init__()
        self.rnn, self.head, self.mean = rnn, nn.Linear(width, 4), mean

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(y.mean(1) if self.mean else y[:, -1])


@network("lstm", floats(3, 5, 6), [(10, 1), (10, 1)])
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(6, 10, num_layers=2, batch_first=True), 10)


@network("gru", floats(3, 5, 6), [(10, 1), (10, 1)])
def gru() -> nn.Module:
    return Recurrent(nn.GRU(6, 10, num_layers=2, batch_first=True), 10)


@network("bilstm", floats(3, 5, 6), [(10, 1), (10, 1)])
def bilstm() -> nn.Module:
    """The mean over time: at the last step the backward direction has not yet used its recurrent weights."""
    return Recurrent(nn.LSTM(6, 10, bidirectional=True, batch_first=True), 20, mean=True)


# --------------------------------------------------------------------------------------------------- attention


def attention_groups(heads: int, qk: int, v: int) -> Groups:
    return [(heads, 1), (qk, heads), (v, heads)]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of (b, h, n, d), heads merged into (b, n, h d)."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def transformer(dim: int, heads: int, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(dim, heads, 32, dropout=0.1, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(6, dim), encoder, nn.Linear(dim, 4))


network("transformer_post", floats(2, 5, 6), [(24, 1), *2 * attention_groups(3, 8, 8), (32, 1), (32, 1)], seed=4)(
    partial(transformer, 24, 3, norm_first=False)
)
network("transformer_pre", floats(2, 5, 6), [(16, 1), *2 * attention_groups(4, 4, 4), (32, 1), (32, 1)], seed=1)(
    partial(transformer, 16, 4, norm_first=True)
)


class CausalAttention(nn.Module):
    def __init__(self, dim: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(softmax_attention(q, k, v, self.mask[:n, :n]))


@network("gpt", tokens(2, 7, vocab=11), [(24, 1), *2 * attention_groups(4, 6, 6), (32, 1), (32, 1)])
class GPT(nn.Module):
    """Some tokens and the last two positions are not met by the inputs; vocabulary and time are pinned all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 24), nn.Parameter(torch.empty(9, 24))
        blocks = [
            (
                Residual(nn.LayerNorm(24), CausalAttention(24, 4, 9)),
                Residual(nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24)),
            )
            for _ in range(2)
        ]
        self.blocks = nn.Sequential(*(part for block in blocks for part in block))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def around(dim: int, *inner: nn.Module) -> tuple[nn.Module, ...]:
    """A dense layer into a residual stream, what stands around it, and one out of it."""
    return nn.Linear(6, dim), *inner, nn.Linear(dim, 4)


@network("attention_heads_first", floats(2, 5, 6), [(18, 1), *attention_groups(4, 5, 5)])
class AttentionHeadsFirst(nn.Module):
    """The fused layer's output is (heads, 3, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.qkv, self.out, self.head = around(18, nn.Linear(18, 60), nn.Linear(20, 18))

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 4, 3, 5).transpose(1, 2).unbind(3)
        return self.head(x + self.out(softmax_attention(q, k, v)))


@network("attention_chunk_sdpa", floats(2, 5, 6), [(18, 1), *attention_groups(4, 5, 5)])
class AttentionChunkSDPA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.qkv, self.out, self.head = around(18, nn.Linear(18, 60), nn.Linear(20, 18))

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, 4, 5).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, 20)))


class AttentionGrouped(nn.Module):
    """Queries of several heads share a head of keys and values."""

    def __init__(self, heads: int, kv_heads: int, how: str) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.how = heads, kv_heads, how
        self.q, self.k, self.v = nn.Linear(18, 5 * heads), nn.Linear(18, 5 * kv_heads), nn.Linear(18, 5 * kv_heads)
        self.emb, self.out, self.head = around(18, nn.Linear(5 * heads, 18))

    def repeat(self, x: Tensor) -> Tensor:
        if self.how == "interleave":
            return x.repeat_interleave(self.heads // self.kv_heads, dim=1)
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, self.heads // self.kv_heads, n, d).reshape(b, self.heads, n, d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        q, k, v = (f(x).unflatten(-1, (-1, 5)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        else:
            y = softmax_attention(q, self.repeat(k), self.repeat(v))
        return self.head(x + self.out(y))


for heads, how in [(4, "interleave"), (6, "expand"), (6, "sdpa")]:
    groups = [(18, 1), (2, 1), (heads // 2, 2), (5, 2), (5, 2)]
    network(f"attention_grouped_{how}", floats(2, 5, 6), groups)(partial(AttentionGrouped, heads, 2, how))


@network("attention_einsum", floats(2, 5, 6), [(18, 1), *attention_groups(3, 4, 5)])
class AttentionEinsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = around(18)
        self.q, self.k = nn.Parameter(torch.empty(18, 3, 4)), nn.Parameter(torch.empty(18, 3, 4))
        self.v, self.out = nn.Parameter(torch.empty(18, 3, 5)), nn.Parameter(torch.empty(3, 5, 18))

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return self.head(x + torch.einsum("bhij,bhjd,hdc->bic", weights, v, self.out))


@network("attention_rotary", floats(2, 5, 6), [(18, 1), (3, 1), (5, 3)])
class AttentionRotary(nn.Module):
    """Each pair of channels of queries and keys turns at a rate of its own, and one way round: they are pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out, self.head = around(18, nn.Linear(15, 18))
        self.q, self.k, self.v = nn.Linear(18, 24), nn.Linear(18, 24), nn.Linear(18, 15)
        self.register_buffer("rates", 10.0 ** -torch.arange(0, 1, 0.25, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        q, k, v = (f(x).unflatten(-1, (3, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        angles = (torch.arange(x.shape[1], device=x.device)[:, None] * self.rates).repeat(1, 2)
        q, k = (t * angles.cos() + self.turn(t) * angles.sin() for t in (q, k))
        return self.head(x + self.out(softmax_attention(q, k, v)))

    @staticmethod
    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)


@network("perceiver", floats(2, 5, 6), [(7, 1), (18, 1), *attention_groups(3, 4, 5), (20, 1)])
class Perceiver(nn.Module):
    """Only the mean over the latent positions is used: they may be permuted."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(7, 18))
        self.q, self.k, self.v, self.out = nn.Linear(18, 12), nn.Linear(6, 12), nn.Linear(6, 15), nn.Linear(15, 18)
        self.mlp = Residual(nn.LayerNorm(18), nn.Linear(18, 20), nn.GELU(), nn.Linear(20, 18))
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        parts = self.q(latents), self.k(x), self.v(x)
        attended = softmax_attention(*(t.unflatten(-1, (3, -1)).transpose(1, 2) for t in parts))
        return self.head(self.mlp(latents + self.out(attended)).mean(1))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


@network("state_space", floats(2, 6, 5), [(3, 1), (4, 3)])
class StateSpace(nn.Module):
    """Channels inside heads, each head with its own decay; the first state is zeros, which no permutation changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.decay, self.out = nn.Linear(5, 12), nn.Linear(5, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x).unflatten(-1, (3, 4)).softmax(-1)
        states = torch.cat([torch.zeros_like(inner[:, :1]), inner], 1)
        decay = F.pad(self.decay(x), (0, 0, 1, 0)).cumsum(1)
        weights = (decay[:, :, None] - decay[:, None]).sigmoid()
        return self.out(torch.einsum("bsth,bshd->bthd", weights, states).flatten(-2))


@network("pops", floats(2, 9, 5), [(6, 1)])
class Pops(nn.Module):
    """A loop that takes the first of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rest, found = self.inner(x), []
        while rest.shape[1] > 1:
            found.append(rest[:, 0].tanh())
            rest = rest[:, 1:]
        return self.out(torch.stack(found, 1))


@network("norm_of_sum", floats(3, 5), [(4, 1)])
class NormOfSum(nn.Module):
    """Two rows of units that only a norm ties: no parameter reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.inner(x).unflatten(-1, (2, 4)).tanh()
        return self.out(rows[:, 0]) * rows.sum(1).square().sum(-1, keepdim=True)


@network("vit", floats(2, 3, 8, 8), [(24, 1), *attention_groups(3, 8, 8), (32, 1)])
class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.cls, self.positions = nn.Parameter(torch.empty(1, 1, 24)), nn.Parameter(torch.empty(1, 5, 24))
        self.block = nn.Sequential(
            Residual(nn.LayerNorm(24), SelfAttention(24, 3, batch_first=True), LayerScale(24)),
            Residual(nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24), LayerScale(24)),
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


# ---------------------------------------------------------------------------------------------- standard sizes


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(inputs, hidden, 1), nn.ReLU(),
            *conv_bn(hidden, hidden, 3, stride), nn.ReLU(),
            *conv_bn(hidden, outputs, 1),
        )  # fmt: skip
        project = inputs != outputs or stride != 1
        self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def resnet(depth: int, width_mult: float = 1, num_classes: int = 10) -> nn.Module:
    """ResNet of depth 6n + 2 for CIFAR, or 50, 101, 152 with bottlenecks for ImageNet.

    Where the shape changes, the shortcut is a 1x1 convolution with a norm (so also in the bottlenecks' first stage).
    """
    bottlenecks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    imagenet = depth in bottlenecks
    block, blocks = (Bottleneck, bottlenecks[depth]) if imagenet else (BasicBlock, 3 * ((depth - 2) // 6,))
    width = round((64 if imagenet else 16) * width_mult)
    layers = [*(conv_bn(3, width, 7, 2) if imagenet else conv_bn(3, width)), nn.ReLU()]
    if imagenet:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, count in enumerate(blocks):
        hidden = width * 2**stage
        outputs = 4 * hidden if imagenet else hidden
        for i in range(count):
            layers.append(block(inputs, hidden, outputs, stride=2 if stage and not i else 1))
            inputs = outputs
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(inputs, num_classes)).eval()


def vgg16(num_classes: int = 10) -> nn.Module:
    layers, inputs = [], 3
    for count, width in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, num_classes)]
    return nn.Sequential(*layers, nn.Flatten(), *dense).eval()


def mlp3x512(num_classes: int = 10) -> nn.Module:
    widths = [784, 512, 512, 512]
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(512, num_classes)).eval()


resnet20 = partial(resnet, 20)
resnet50 = partial(resnet, 50, num_classes=1000)


def _ones(*sizes: int) -> Groups:
    return sorted((size, 1) for size in sizes)


for large in [
    Network("mlp3x512", mlp3x512, floats(2, 1, 28, 28, dtype=torch.float32), _ones(*3 * [512])),
    Network(
        "vgg16",
        vgg16,
        floats(2, 3, 32, 32, dtype=torch.float32),
        _ones(*2 * [64], *2 * [128], *3 * [256], *6 * [512], *2 * [4096]),
    ),
    Network("resnet20", resnet20, floats(2, 3, 32, 32, dtype=torch.float32), _ones(*4 * [16], *4 * [32], *4 * [64])),
    Network(
        "resnet50",
        resnet50,
        floats(2, 3, 64, 64, dtype=torch.float32),
        _ones(64, 256, 512, 1024, 2048, *6 * [64], *8 * [128], *12 * [256], *6 * [512]),
    ),
]:
    LARGE[large.name] = large
