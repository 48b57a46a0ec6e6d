"""Define the channel MLP."""

from torch import Tensor, nn

from .channels_last import GELU
from .dropout import Dropout


class Mlp(nn.Module):
    """1x1 convolution, activation, dropout, 1x1 convolution, dropout: (B, dim, H, W) -> (B, dim, H, W)."""

    def __init__(self, dim: int, hidden: int, *, act_layer: type[nn.Module] = GELU, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = act_layer()
        self.drop1 = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop2 = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
