"""What every backbone promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class BaseVisionBackbone(nn.Module, ABC):
    """A pyramid of feature maps, finest first, channels first; and one vector a picture.

    Attributes
    ----------
    feature_channels, feature_strides: one number a level.
    feature_dim: length of the vector that `forward` returns.
    mean, std: normalisation of [0, 1] pictures that the weights expect, three values each.
    classic: the previous release's ResNet path (FPN, CBAM, fusion at stride 4) is its default.
    prefers_channels_last: convolutional, so that the channels_last memory format pays.
    """

    classic = False
    prefers_channels_last = False

    def __init__(
        self,
        feature_channels: list[int],
        feature_strides: list[int],
        feature_dim: int | None = None,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.feature_channels, self.feature_strides = list(feature_channels), list(feature_strides)
        self.feature_dim = feature_dim or self.feature_channels[-1]
        self.mean, self.std = tuple(mean), tuple(std)
        self.projection = nn.Linear(self.feature_channels[-1], feature_dim) if feature_dim else nn.Identity()

    @abstractmethod
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """[B, in_channels, H, W] → [B, feature_channels[i], H / stride_i, W / stride_i] for each level."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, feature_dim]: mean over the coarsest level, projected if asked for."""
        return self.projection(self.forward_features(x)[-1].flatten(2).mean(-1))
