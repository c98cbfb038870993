"""3 x 3 convolutions on a CPU with a quarter of the multiplications (Winograd's minimal filtering).

F(4 x 4, 3 x 3) of Lavin and Gray (CVPR 2016): a tile of 6 x 6 inputs gives 4 x 4 outputs by 36 multiplications a pair
of channels instead of 144. The polynomials are evaluated at 0, ±5/8, ±3/2 and infinity: exact in binary, and nearer
to 1 than the usual 0, ±1, ±2, which leaves a quarter of the rounding error.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

OUT = 4
"""Edge of the outputs of a tile."""
IN = OUT + 2
"""Edge of its inputs."""
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def transforms(points: Sequence[float] = _POINTS) -> tuple[npt.NDArray[np.float64], ...]:
    """Bᵀ (6 x 6) of the inputs, G (6 x 3) of the kernel and Aᵀ (4 x 6) of the products, by Toom and Cook.

    Convolution of polynomials is evaluation (Vandermonde), product and interpolation; correlation is its transpose.
    """
    at = np.asarray(points)

    def powers(count: int) -> npt.NDArray[np.float64]:
        return np.vstack([at[:, None] ** np.arange(count), np.eye(count)[-1]])

    apart = at[:, None] - at + np.eye(at.size)
    factor = np.append(apart.prod(axis=1), 1.0)[:, None]
    return np.linalg.inv(powers(IN)).T * factor, powers(3) / factor, powers(OUT).T


class Winograd(nn.Module):
    """A convolution 3 x 3 over rows of an image, channels last.

    Args:
        weight: (out, in, 3, 3).
        bias: (out,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        before, kernel, after = (torch.from_numpy(matrix) for matrix in transforms())
        spread = torch.einsum("ik,ockl,jl->ijco", kernel, weight.detach().double(), kernel)
        self.register_buffer("kernel", spread.flatten(0, 1).float().contiguous())
        self.register_buffer("bias", bias.detach().clone())
        self.register_buffer("before", before.float())
        self.register_buffer("after", after.float())
        self.kernel: Tensor
        self.bias: Tensor
        self.before: Tensor
        self.after: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (R + 2, W + 2, in) with what surrounds them to (R, W, out); R and W are multiples of 4."""
        down, across, channels = (rows.shape[0] - 2) // OUT, (rows.shape[1] - 2) // OUT, rows.shape[2]
        y, x, c = rows.stride()
        tiles = rows.as_strided((IN, IN, down, across, channels), (y, x, OUT * y, OUT * x, c))
        spread = torch.mm(self.before, tiles.reshape(IN, -1)).view(IN, IN, -1)
        spread = torch.matmul(self.before, spread).view(IN * IN, down * across, channels)
        products = torch.bmm(spread, self.kernel).view(IN, IN, -1)
        made = torch.mm(self.after, torch.matmul(self.after, products).view(IN, -1))
        made = made.view(OUT, OUT, down, across, -1).permute(2, 0, 3, 1, 4).reshape(down * OUT, across * OUT, -1)
        return made.add_(self.bias)


def whole(size: int) -> int:
    """The least multiple of a tile's edge that is not below `size`."""
    return -(-size // OUT) * OUT
