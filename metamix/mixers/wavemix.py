"""Mix tokens on the bands of a wavelet transform.

"WaveMix: A Resource-efficient Neural Network for Image Analysis" (arXiv 2205.14375; first version 2203.03689):

    a_0 = reduce(x)                                             Conv1x1, C -> C / 4
    a_l, d_l = DWT(a_(l-1))              l = 1 ... level        half the size: approximation, three detail bands
    y_L = norm(up(MLP(concat(a_L, d_L))))                       the deepest level, L = level
    y_l = norm(up(MLP(concat(a_l, d_l, y_(l+1)))))              for l = L - 1 ... 1, the finest level
    y   = y_1

    MLP = fc1, GELU, dropout, fc2                               1x1 convolutions
    up  = transposed convolution k4 s2 p1, or bilinear upsampling

The paper's block is this mixer with a residual, without a norm before the mixer or a channel MLP after it.

The map may have any size: the transform pads odd sides of a map with zeros (PyWavelets' mode "zero"), and the upsampled
map is cropped. Filters with more taps than Haar's two make bands larger than half of the map, so the crop keeps the
centre. The cost is linear in the number of tokens. With the default `ff_channel`, most of it is the transposed
convolution: 4 C multiply-adds per value.

Departures from the authors' code: they order the detail channels by channel (c0-LH, c0-HL, c0-HH, c1-LH ...); we order
them by band. When a checkpoint of the authors is loaded, the first convolution of each MLP is therefore permuted. Their
code does not run on maps with odd sides. The options norm="group" and upsample="bilinear" are ours;
`models/wavemix.py` explains "bilinear".
"""

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamix.layers import GELU, Dropout, GroupNorm1, crop_to, fx_leaf, pad_to
from metamix.utils.checks import check_choice, check_counts
from metamix.utils.text import did_you_mean

from .registry import register_mixer

UPSAMPLE = ("transposed", "bilinear")
NORMS = {"batch": nn.BatchNorm2d, "group": GroupNorm1}


@register_mixer("wavemix")
class WaveMix(nn.Module):
    """MLPs on wavelet bands: (B, C, H, W) -> (B, C, H, W).

    Args:
        level: number of levels of the transform, 1 (WaveMix-Lite) to 4.
        wavelet: name of a discrete wavelet of PyWavelets.
        mult: hidden width of the MLP as a multiple of C.
        ff_channel: output width of the MLP; 0 for C. Only for upsample="transposed".
        upsample: "transposed" as in WaveMix, or "bilinear", our guess for two WaveMix-Lite models.
        norm: "batch" as in the authors' code, or "group" (one group) for small batches and detection from scratch.
        proj_drop: dropout rate in the MLPs.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        level: int = 1,
        wavelet: str = "haar",
        mult: int = 2,
        ff_channel: int = 0,
        upsample: str = "transposed",
        norm: str = "batch",
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(f"wavemix reduces its channels to a quarter: {dim} is not a multiple of 4.")
        check_counts(1, level=level, mult=mult)
        if level > 4:
            raise ValueError(f"level is {level!r}; the transform has 1, 2, 3 or 4 levels.")
        check_counts(0, ff_channel=ff_channel)
        wavelets = pywt.wavelist(kind="discrete")
        if wavelet not in wavelets:
            raise ValueError(
                f"{wavelet!r} is not a discrete wavelet of PyWavelets{did_you_mean(wavelet, wavelets)} "
                f"`pywt.wavelist(kind='discrete')` lists them."
            )
        check_choice("upsample", upsample, UPSAMPLE)
        check_choice("norm", norm, NORMS)
        if upsample == "bilinear" and ff_channel:
            raise ValueError(f"ff_channel is {ff_channel}, but upsample='bilinear' has no such width: give 0.")
        self.filters = pywt.Wavelet(wavelet).filter_bank[:2]
        self.reduce = nn.Conv2d(dim, dim // 4, 1)
        self.levels = nn.ModuleList()  # from the finest to the deepest
        for i in range(level):
            dim_in = dim if i == level - 1 else dim + dim // 2  # all but the deepest also read the next deeper output
            dim_out = dim if i == 0 else dim // 2
            widths = dim_in, mult * dim, ff_channel or dim, dim_out
            self.levels.append(BandMlp(*widths, upsample=upsample, norm=norm, drop=proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        a = self.reduce(x)  # (B, C / 4, H, W)
        sizes, bands = [], []
        for _ in self.levels:
            sizes.append(a.shape[-2:])
            bands.append(dwt2(a, self.filters))  # (B, C, h, w); h and w are about half the sides of `a`
            a = bands[-1].chunk(4, dim=1)[0]
        y = crop_to(self.levels[-1](bands[-1]), sizes[-1], centre=True)
        for size, band, mlp in list(zip(sizes[:-1], bands, self.levels))[::-1]:
            y = mlp(torch.cat([band, y], dim=1))  # (B, C / 2, or C from the finest level, 2h, 2w)
            y = crop_to(y, size, centre=True)
        return y


class BandMlp(nn.Module):
    """norm(up(MLP(bands))) of one level: (B, C_in, h, w) -> (B, C_out, 2h, 2w)."""

    def __init__(self, dim_in: int, hidden: int, ff: int, dim_out: int, *, upsample: str, norm: str, drop: float):
        super().__init__()
        transposed = upsample == "transposed"
        self.fc1 = nn.Conv2d(dim_in, hidden, 1)
        self.act = GELU()
        self.drop = Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, ff if transposed else dim_out, 1)
        self.up = (
            nn.ConvTranspose2d(ff, dim_out, 4, stride=2, padding=1)
            if transposed
            else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        )
        self.norm = NORMS[norm](dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(self.fc2(self.drop(self.act(self.fc1(x))))))


@fx_leaf
def dwt2(x: Tensor, filters: tuple[list[float], list[float]]) -> Tensor:
    """Compute one level of the 2-D discrete wavelet transform, like `pywt.dwt2` with mode="zero".

    (B, C, H, W) -> (B, 4 C, h, w) with h = floor((H + L - 1) / 2) for L taps: all channels of the approximation, then
    of the details LH (low along the width, high along the height; PyWavelets' cH), HL (cV) and HH (cD). `filters` are
    the wavelet's low-pass and high-pass filters, `pywt.Wavelet(name).filter_bank[:2]`.
    """
    if len(filters[0]) == 2:  # Haar, under any of its names
        return haar2(x)
    low, high = (torch.tensor(f[::-1], dtype=x.dtype, device=x.device) for f in filters)
    bands = torch.stack([torch.outer(a, b) for a, b in ((low, low), (high, low), (low, high), (high, high))])
    channels, (h, w), taps = x.shape[1], x.shape[-2:], len(low)
    # The stride keeps every second value, starting with the second. An odd side gets one more zero at its end.
    x = F.pad(x, (taps - 2, taps - 2 + w % 2, taps - 2, taps - 2 + h % 2))
    kernel = bands[:, None].repeat_interleave(channels, dim=0)
    return F.conv2d(x.repeat(1, 4, 1, 1), kernel, stride=2, groups=4 * channels)


def haar2(x: Tensor) -> Tensor:
    """Compute `dwt2` for Haar from sums and differences of the four values in each 2 x 2 cell."""
    # First move the channels to the last dimension, since the backward pass of unbind writes its gradient in the order
    # of the dimensions.
    x = pad_to(x, (2, 2)).movedim(1, -1) * 0.5  # (B, H, W, C)
    top, bottom = x.unflatten(1, (-1, 2)).unbind(2)  # (B, H / 2, W, C) each
    s, d = top + bottom, top - bottom  # low and high along the height
    (a, b), (c, e) = (rows.unflatten(2, (-1, 2)).unbind(3) for rows in (s, d))
    return torch.cat([band.movedim(3, 1) for band in (a + b, c + e, a - b, c - e)], dim=1)
