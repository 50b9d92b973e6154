"""Images of two handwritten digits, rendered anew without end from scikit-learn's scans."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 100
SIZE = 48
# Pieces of other scans in each image, and the standard deviation of the noise in units of ink.
NUM_PIECES = 4
NOISE = 0.12
# Scans of each split; no scan is in two of them.
SPLITS = {'train': 1000, 'val': 300, 'test': 497}


class Scans(NamedTuple):
    """Scans of one split.

    Attributes:
        images: (N, 1, 8, 8), from 0 (paper) to 1 (ink).
        digits: (N,), from 0 to 9.
    """

    images: Tensor
    digits: Tensor


class Batch(NamedTuple):
    """Rendered images.

    Attributes:
        images: (N, 1, 48, 48), with mean and standard deviation near 0 and 1.
        labels: (N,), ten times the digit on the left plus the digit on the right.
    """

    images: Tensor
    labels: Tensor


@cache
def scans_of(split: str) -> Scans:
    """The scans of ``'train'``, ``'val'`` or ``'test'``, always the same ones.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed; install it with: pip '
            'install scikit-learn'
        ) from error
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(SPLITS, order.split(list(SPLITS.values()))))
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return Scans(images[parts[split]], torch.tensor(digits.target)[parts[split]])


def render(scans: Scans, count: int, seed: int, noise: float = 0.15, clutter: int = 4) -> Batch:
    """Draw ``count`` images; equal arguments give equal images.

    Each image has two digits of different sizes, angles, slants and shades of grey, which may
    overlap. The left one's centre is at least 9 pixels to the left of the other's. Behind them
    are pieces of other scans, and there is noise over everything.

    Args:
        scans: of the split.
        count: how many images.
        seed: of all that is drawn.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=random)

    def pick(*shape: int) -> Tensor:
        return torch.randint(len(scans.digits), shape, generator=random)

    chosen = pick(count, 2)
    left = uniform(11, 28, count)
    centres = torch.stack([left, left + uniform(9, 20, count)], 1).clamp(max=SIZE - 8)
    centres = torch.stack([centres, uniform(11, SIZE - 11, count, 2)], -1)
    digits = _place(
        scans.images[chosen], centres, sides=uniform(15, 26, count, 2),
        angles=uniform(-0.5, 0.5, count, 2), slants=uniform(-0.3, 0.3, count, 2),
    )  # fmt: skip
    digits *= uniform(0.6, 1, count, 2, 1, 1)

    halves = _cut(
        scans.images[pick(count, NUM_PIECES)], uniform(-math.pi, math.pi, count, NUM_PIECES)
    )
    pieces = _place(
        halves, uniform(0, SIZE, count, NUM_PIECES, 2), sides=uniform(15, 26, count, NUM_PIECES),
        angles=uniform(-math.pi, math.pi, count, NUM_PIECES), slants=torch.zeros(count, NUM_PIECES),
    )  # fmt: skip
    pieces *= uniform(0.2, 0.8, count, NUM_PIECES, 1, 1)

    image = torch.cat([digits, pieces], 1).amax(1)
    image += NOISE * torch.randn(image.shape, generator=random)
    labels = (scans.digits[chosen] * torch.tensor([10, 1])).sum(1)
    return Batch((image[:, None] - 0.2) / 0.3, labels)


def _cut(scans: Tensor, angles: Tensor) -> Tensor:
    """Keep the half of each scan that lies in a direction."""
    rows, columns = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(8.0) - 3.5, indexing='ij')
    angles = angles[..., None, None, None]
    return scans * (rows * angles.sin() + columns * angles.cos() > 0)


def _place(scans: Tensor, centres: Tensor, sides: Tensor, angles: Tensor, slants: Tensor) -> Tensor:
    """Draw scans into images of their own.

    Args:
        scans: (N, K, 1, 8, 8).
        centres: (N, K, 2), x and y in pixels.
        sides: (N, K), in pixels.
        angles: (N, K), in radians.
        slants: (N, K), pixels to the side for each pixel down.

    Returns:
        (N, K, 48, 48).
    """
    cos, sin = angles.cos(), angles.sin()
    # From the image to the scan, as grid_sample takes it; both reach from -1 to 1.
    inverse = torch.stack([cos, sin, slants * cos - sin, cos + slants * sin], -1)
    inverse = inverse.unflatten(-1, (2, 2)) * (SIZE / sides)[..., None, None]
    shift = -inverse @ (2 * centres / SIZE - 1)[..., None]
    grid = F.affine_grid(
        torch.cat([inverse, shift], -1).flatten(0, 1), [sides.numel(), 1, SIZE, SIZE], False
    )
    drawn = F.grid_sample(scans.flatten(0, 1), grid, align_corners=False)
    return drawn.view(*sides.shape, SIZE, SIZE)
