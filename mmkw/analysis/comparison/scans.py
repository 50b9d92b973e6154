"""Scans of handwritten digits, made hard to read."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

NUM_CLASSES = 10
NUM_SCANS = 1797
SIZE = 32


@DATASETS.register_module()
class NoisyDigits(Dataset):
    """Scikit-learn's scans of digits at 32 pixels, with noise and a hidden square.

    Equal arguments give equal images. The scans of ``'val'`` are drawn once for all seeds, and
    those of ``'train'`` from the others.

    Args:
        split: ``'train'`` or ``'val'``.
        seed: of the choice of scans and of all that is drawn.
        num_scans: how many scans of the split to take.
        num_val_scans: how many scans are set aside for validation.
        renderings: images of each scan, which differ in position, noise and what is hidden.
        noise: standard deviation of the noise, relative to the range from black to white.
        hidden: side of the hidden square, relative to the image's.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """

    metainfo = dict(classes=tuple('0123456789'))

    def __init__(
        self,
        split: str,
        seed: int,
        num_scans: int,
        num_val_scans: int,
        renderings: int,
        noise: float,
        hidden: float,
    ) -> None:
        scans, labels = _load_scans()
        order = np.random.default_rng(0).permutation(NUM_SCANS)
        chosen = order[:num_val_scans]
        if split == 'train':
            chosen = np.random.default_rng([1, seed]).permutation(order[num_val_scans:])
        chosen = chosen[:num_scans]
        random = np.random.default_rng([2 if split == 'train' else 3, seed])
        self.images = np.stack(
            [
                _render(random, scans[index], noise, hidden)
                for index in chosen
                for _ in range(renderings)
            ]
        )
        self.labels = labels[chosen].repeat(renderings)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        """An image in uint8, shape (1, 32, 32), and its label."""
        return dict(
            inputs=torch.from_numpy(self.images[index])[None],
            data_samples=DataSample().set_gt_label(int(self.labels[index])),
        )


def _load_scans() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed; install it with: pip '
            'install scikit-learn'
        ) from error
    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


def _render(
    random: np.random.Generator, scan: np.ndarray, noise: float, hidden: float
) -> np.ndarray:
    """One scan at a random place, with noise and a hidden square, (32, 32) in uint8."""
    image: np.ndarray = np.zeros((SIZE, SIZE), np.float32)
    side = int(random.integers(20, 29))
    top, left = random.integers(0, SIZE - side + 1, 2)
    digit = cv2.resize(scan, (side, side), interpolation=cv2.INTER_LINEAR)
    image[top : top + side, left : left + side] = digit
    square = round(hidden * SIZE)
    top, left = random.integers(0, SIZE - square + 1, 2)
    image[top : top + square, left : left + square] = 0
    image += random.normal(0, noise, image.shape).astype(np.float32)
    return (64 + 127 * image).clip(0, 255).round().astype(np.uint8)
