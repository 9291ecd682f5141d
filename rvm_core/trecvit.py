"""TRecViT (arXiv 2412.14294): gated linear recurrent units over time, attention over the tokens of a frame.

Shapes: B batch, T frames, H W image in pixels, N patch tokens, D width; tokens carry [CLS] first, so N+1; L blocks, R
channels of the recurrence in K groups of C, W frames that the convolution over time sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.config import PATCH_SIZE, TRecViTConfig, check_image_size
from rvm_core.encoder import PatchEmbedding
from rvm_core.layers import LAYER_NORM_EPS, EncoderBlock, Linear
from rvm_core.linear_scan import linear_scan
from rvm_core.position import resize_grid
from rvm_core.streaming import StreamingEncoder

RMS_NORM_EPS = 1e-6
DECAY_SCALE = 8.0
"""Of the exponent of the decay."""
_LEAST_SQUARE = 1e-12
"""Under the root of the input's scale, so that its gradient stays finite where the recurrence forgets nothing."""


class TRecViTState(NamedTuple):
    """What a stream carries from frame to frame, float32; of the same size however many frames it has seen."""

    inputs: Tensor
    """(B, L, W-1, N+1, R): what entered the convolution in the last frames, the newest last; zeros before the start."""
    hidden: Tensor
    """(B, L, N+1, R): the recurrence."""
    started: Tensor
    """(B,): 0 before the first frame of a stream, which enters the recurrence unscaled, then 1."""


class RMSNorm(nn.Module):
    """(..., D) -> (..., D): scaled to a root mean square of 1, then by 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_NORM_EPS) * (1 + self.weight)


class TimeConvolution(nn.Module):
    """Depthwise, causal: (B, W-1+T, n, R) -> (B, T, n, R); the last weight multiplies the current frame."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(frames, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, inputs: Tensor) -> Tensor:
        count = inputs.shape[1] - self.weight.shape[0] + 1
        total: Tensor = self.bias
        for k, weight in enumerate(self.weight.unbind()):
            total = total + weight * inputs[:, k : k + count]
        return total


class BlockDiagonal(nn.Module):
    """(..., R) -> (..., R), each group of channels by itself."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, width // groups, width // groups))
        self.bias = nn.Parameter(torch.empty(groups, width // groups))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, self.bias.shape)
        return (torch.einsum("...kc,kcd->...kd", grouped, self.weight) + self.bias).flatten(-2)


class RecurrentUnit(nn.Module):
    """The real-gated linear recurrent unit of Griffin (arXiv 2402.19427)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.input_gate = BlockDiagonal(width, groups)
        self.decay_gate = BlockDiagonal(width, groups)
        self.decay = nn.Parameter(torch.empty(width))

    def forward(self, z: Tensor, hidden: Tensor, started: Tensor) -> Tensor:
        """z (B, T, n, R), hidden (B, n, R) before it, started (B,) -> hidden of every frame (B, T, n, R)."""
        log_decay = -DECAY_SCALE * torch.sigmoid(self.decay_gate(z)) * F.softplus(self.decay)
        scale = (1 - torch.exp(2 * log_decay)).clamp_min(_LEAST_SQUARE).sqrt()
        first = torch.where(started.view(-1, 1, 1, 1) > 0, scale[:, :1], torch.ones_like(scale[:, :1]))
        scale = torch.cat([first, scale[:, 1:]], dim=1) if z.shape[1] > 1 else first
        return linear_scan(torch.exp(log_decay), scale * torch.sigmoid(self.input_gate(z)) * z, hidden)


class RecurrentBlock(nn.Module):
    """Mixes over time, each token by itself."""

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__()
        width, inner = config.width, config.recurrent_width
        self.norm = RMSNorm(width)
        self.linear_x = Linear(width, inner)
        self.linear_y = Linear(width, inner)
        self.convolution = TimeConvolution(config.conv_width, inner)
        self.unit = RecurrentUnit(inner, config.recurrent_heads)
        self.linear_out = Linear(inner, width)

    def forward(self, x: Tensor, inputs: Tensor, hidden: Tensor, started: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, n, D), inputs (B, W-1, n, R), hidden (B, n, R), started (B,) -> new (x, inputs, hidden)."""
        normed = self.norm(x)
        gate = F.gelu(self.linear_y(normed), approximate="tanh")
        # Whatever the products are computed in, what is carried on and summed up over time is float32.
        window = torch.cat([inputs, self.linear_x(normed).to(torch.float32)], dim=1)
        states = self.unit(self.convolution(window), hidden, started)
        return x + self.linear_out(states * gate), window[:, x.shape[1] :], states[:, -1]


class TRecViTBlock(nn.Module):
    """A recurrent block over time, then a ViT block over the tokens of each frame."""

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__()
        self.recurrent = RecurrentBlock(config)
        self.spatial = EncoderBlock(config.width, config.heads, config.mlp_width)

    def forward(self, x: Tensor, inputs: Tensor, hidden: Tensor, started: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `RecurrentBlock`."""
        x, inputs, hidden = self.recurrent(x, inputs, hidden, started)
        return self.spatial(x.flatten(0, 1)).unflatten(0, x.shape[:2]), inputs, hidden


class Tokenizer(nn.Module):
    """(B, 3, H, W) -> patch tokens with their learned positions (B, N, D), without [CLS]."""

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.width)
        self.position_table = nn.Parameter(torch.empty(config.position_grid**2, config.width))
        self.cls_token = nn.Parameter(torch.empty(1, config.width))
        self.grid = (config.position_grid, config.position_grid)

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        check_image_size(height, width)
        tokens = self.patch_embedding(frames).flatten(2).transpose(1, 2)
        return tokens + self.positions(height // PATCH_SIZE, width // PATCH_SIZE)

    def positions(self, rows: int, cols: int) -> Tensor:
        """(rows * cols, D), resized where that is not the learned grid."""
        return resize_grid(self.position_table.unflatten(0, self.grid), rows, cols).flatten(0, 1)


class Classifier(nn.Module):
    """[CLS] of the frames of a clip (B, T, D) -> logits (B, classes)."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.pre_logits = Linear(width, hidden)
        self.to_logits = Linear(hidden, classes)

    def forward(self, cls_tokens: Tensor) -> Tensor:
        logits: Tensor = self.to_logits(torch.tanh(self.pre_logits(cls_tokens)).mean(dim=1))
        return logits


class TRecViT(StreamingEncoder):
    """The recurrent video transformer: one frame and a state in, features and the new state out.

    Args:
        config: the sizes; with `config.classes` it has a classifier.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: TRecViTConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config: TRecViTConfig = config
        self.tokenizer = Tokenizer(config)
        self.blocks = nn.ModuleList(TRecViTBlock(config) for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.classifier: Classifier | None = None
        if config.classes is not None and config.classifier_width is not None:
            self.classifier = Classifier(config.width, config.classifier_width, config.classes)
        if seed is not None:
            _initialize(self, torch.Generator().manual_seed(seed))

    def forward(self, frames: Tensor, state: TRecViTState) -> tuple[Tensor, TRecViTState]:
        """One recurrent step.

        frames (B, 3, H, W) float RGB in [0, 1]. Returns (features (B, N+1, D) float32, the new state).
        """
        features, state = self.encode(self.tokenizer(frames).unsqueeze(1), state)
        return features.squeeze(1), state

    def init_state(self, batch_size: int, height: int, width: int) -> TRecViTState:
        """The state before the first frame, zeros on the device of the weights.

        Raises `ValueError` unless height and width, in pixels, are multiples of 16.
        """
        check_image_size(height, width)
        return self.empty_state(batch_size, (height // PATCH_SIZE) * (width // PATCH_SIZE))

    def empty_state(self, batch_size: int, patches: int) -> TRecViTState:
        """The state before the first frame, for this number of patch tokens."""
        config, device = self.config, self.output_norm.weight.device
        shape = (patches + 1, config.recurrent_width)
        return TRecViTState(
            inputs=torch.zeros(batch_size, config.depth, config.conv_width - 1, *shape, device=device),
            hidden=torch.zeros(batch_size, config.depth, *shape, device=device),
            started=torch.zeros(batch_size, device=device),
        )

    def encode_clip(self, frames: Tensor, state: TRecViTState | None = None) -> tuple[Tensor, TRecViTState]:
        """All frames of a clip at once, the same numbers as a step for each but for rounding.

        frames (B, T, 3, H, W) float RGB in [0, 1]; state: before the first of them, None at the start of a stream.
        Returns (features (B, T, N+1, D), the state after the last).
        """
        return self.encode(self.tokenizer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), state)

    def encode(self, tokens: Tensor, state: TRecViTState | None = None) -> tuple[Tensor, TRecViTState]:
        """Any subset of the patch tokens, the same in every frame: (B, T, n, D) -> ((B, T, n+1, D), the new state)."""
        batch, count, patches, _ = tokens.shape
        before = self.empty_state(batch, patches) if state is None else state
        all_inputs, all_hidden, started = before
        x = torch.cat([self.tokenizer.cls_token.expand(batch, count, 1, -1), tokens], dim=2)
        carried: list[tuple[Tensor, Tensor]] = []
        for i, block in enumerate(self.blocks):
            x, inputs, hidden = block(x, all_inputs[:, i], all_hidden[:, i], started)
            carried.append((inputs, hidden))
        inputs, hidden = (torch.stack(parts, dim=1) for parts in zip(*carried, strict=True))
        return self.output_norm(x), TRecViTState(inputs, hidden, started.clamp_min(1.0))

    def classify(self, features: Tensor) -> Tensor:
        """Features of the frames of a clip (B, T, N+1, D) -> logits (B, classes).

        Raises `ValueError` if the model has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this model has no classifier; supervised checkpoints have one")
        logits: Tensor = self.classifier(features[:, :, 0])
        return logits


@torch.no_grad()
def _initialize(model: TRecViT, generator: torch.Generator) -> None:
    """Initial distributions as in the paper: Glorot uniform for ViT blocks, LeCun normal for the rest, decays between
    0.5 and 0.999, and outputs of recurrent blocks that grow smaller with the depth."""
    depth = model.config.depth
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "bias" or name.endswith("recurrent.norm.weight"):
            parameter.zero_()
        elif leaf == "decay":
            square = torch.empty_like(parameter).uniform_(0.5**2, 0.999**2, generator=generator)
            parameter.copy_(torch.log(torch.expm1(-0.5 * torch.log(square))))
        elif leaf in ("cls_token", "position_table"):
            parameter.normal_(std=0.0 if leaf == "cls_token" else parameter.shape[1] ** -0.5, generator=generator)
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        elif ".convolution." in name:
            parameter.normal_(std=0.01**0.5, generator=generator)
        elif ".spatial." in name:
            width = model.config.width
            fans = parameter.numel() // width + width if ".attention." in name else sum(parameter.shape)
            bound = math.sqrt(6 / fans)
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            fan_in = parameter.shape[1] if "_gate." in name else parameter[0].numel()
            variance = 2 / depth if name.endswith("linear_out.weight") else 1.0
            parameter.normal_(std=math.sqrt(variance / fan_in), generator=generator)
