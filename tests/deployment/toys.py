"""Networks so small that exporting them takes a second or two."""

import torch
from torch import Tensor, nn

IMAGE_SHAPE = (3, 8, 8)


class Toy(nn.Module):
    """Convolution, dropout, mean, linear. [B, 3, 8, 8] → logits [B, 4], or that behind coarse ones [B, 2]."""

    def __init__(self, hierarchical: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dropout = nn.Conv2d(3, 6, 3), nn.Dropout(0.9)
        self.fine, self.coarse = nn.Linear(6, 4), nn.Linear(6, 2) if hierarchical else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled = self.dropout(self.conv(x).relu()).mean((2, 3))
        return self.fine(pooled) if self.coarse is None else (self.coarse(pooled), self.fine(pooled))


class DependsOnValues(Toy):
    """Goes one way or the other by what is in the image, which no graph of operations can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class WithoutCounterpart(Toy):
    """Has an operation that ONNX does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.linalg.eigvalsh(x[:, 0] + x[:, 0].mT).sum(-1, keepdim=True)
