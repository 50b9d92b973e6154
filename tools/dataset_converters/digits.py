"""Make small image sets from the scans of handwritten digits inside scikit-learn.

``sklearn.datasets.load_digits`` reads 1,797 scans of 8 x 8 pixels (UCI "Optical Recognition of
Handwritten Digits") from the installed package, so nothing is downloaded. Out of them come

* ``imagenet/{train,val}/<class>/*.png``: one digit an image, in ImageNet's folder layout;
* ``coco/{train,val}/*.png`` and ``coco/annotations/instances_{train,val}.json``: scenes of several
  digits on textured ground, in COCO's format, with exact instance masks;
* ``coco/labels/{train,val}/*.png``: the same scenes for segmentation, 0 for ground and 1 to 10 for
  the digits 0 to 9 at each pixel.

Both sets share one split by scan: a scan used for training appears nowhere in validation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle_codec

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ('train', 'val')
MANIFEST = 'manifest.json'
MAKER = 'tools/dataset_converters/digits.py'
FORMAT = 2  # raised whenever the same settings would give other files


@dataclass(frozen=True)
class DigitsSettings:
    """What the files depend on: equal settings give equal files.

    Args:
        seed: Seed of the split and of everything drawn. Default 0.
        image_size: Side of a classification image in pixels. Default 32.
        renderings: Classification images made of each training scan; a validation scan gets
            one. Default 8.
        scene_size: Side of a scene in pixels. Default 128.
        train_scenes: Number of training scenes. Default 960.
        val_scenes: Number of validation scenes. Default 80.

    Raises:
        ValueError: If a value is not an integer or too small to make an image set of.
    """

    seed: int = 0
    image_size: int = 32
    renderings: int = 8
    scene_size: int = 128
    train_scenes: int = 960
    val_scenes: int = 80

    def __post_init__(self) -> None:
        least = dict(
            seed=0, image_size=16, renderings=1, scene_size=96, train_scenes=1, val_scenes=1
        )
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least[name]:
                raise ValueError(
                    f'{name} is {value!r}, expected an integer of at least {least[name]}; '
                    f'pass --{name.replace("_", "-")} accordingly'
                )


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's scans, (1797, 8, 8) in [0, 1], and their digits, (1797,).

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed; '
            'install it with: pip install scikit-learn'
        ) from error
    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


def split_scans(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Split the scans' indices 80 / 20 within each class, reproducibly by ``seed``."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        cut = round(0.8 * len(indices))
        parts['train'].append(indices[:cut])
        parts['val'].append(indices[cut:])
    return {split: np.sort(np.concatenate(chunks)) for split, chunks in parts.items()}


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw textured ground: noise of several scales around one colour, (size, size, 3)."""
    ground = np.full((size, size, 3), rng.uniform(10, 110, 3), dtype=np.float32)
    for cells in (2, 4, 8, 16, 32):
        noise = rng.normal(0, rng.uniform(2, 7), (cells, cells, 3)).astype(np.float32)
        ground += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return ground.clip(0, 255)


def paint(rng: np.random.Generator, canvas: np.ndarray, opacity: np.ndarray) -> None:
    """Blend a digit in a colour brighter than its ground into ``canvas``, in place.

    Args:
        rng: Source of the colour.
        canvas: The part of the picture under the digit, (h, w, 3).
        opacity: The upscaled scan, (h, w) in [0, 1].
    """
    ground = canvas.mean()
    while True:
        colour = rng.uniform(0, 255, 3)
        if colour.mean() > ground + 90:
            break
    canvas += opacity[..., None] * (colour.astype(np.float32) - canvas)


def upscale(scan: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a scan bicubically to (size, size), within [0, 1].

    Strokes often reach the border of their scan. One empty pixel around lets them end softly.
    """
    return cv2.resize(np.pad(scan, 1), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def render_digit(rng: np.random.Generator, scan: np.ndarray, size: int) -> np.ndarray:
    """Render one scan at a random size, tilt, place and colour, (size, size, 3) in uint8."""
    image = texture(rng, size)
    side = int(rng.uniform(0.85, 1) * size)
    top, left = rng.integers(0, size - side + 1, 2)
    middle = (side - 1) / 2
    tilt = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-12, 12), 1)
    opacity = cv2.warpAffine(upscale(scan, side), tilt, (side, side))
    paint(rng, image[top : top + side, left : left + side], opacity)
    return image.round().astype(np.uint8)


def render_scene(
    rng: np.random.Generator, scans: np.ndarray, indices: np.ndarray, size: int
) -> tuple[np.ndarray, list[dict]]:
    """Render 3 to 5 random digits on textured ground.

    Scans are 20 to 60 pixels wide. A digit's mask is where its upscaled scan exceeds 0.35; its
    box is tight round the mask. Another place is drawn while one box would cover more than 5 %
    of another; a scene that has no place left keeps fewer digits. Where two masks still meet,
    the later digit hides the earlier one, whose mask ends there.

    Args:
        rng: Source of everything drawn.
        scans: All scans, (N, 8, 8) in [0, 1].
        indices: The scans to choose from.
        size: Side of the scene in pixels.

    Returns:
        The picture, (size, size, 3) in uint8, and for each digit a dict of ``scan`` (its index),
        ``mask`` (size, size) of bool and ``box`` (left, top, width, height) in pixels.
    """
    image = texture(rng, size)
    digits: list[dict] = []
    wanted = rng.integers(3, 6)
    for _ in range(200):
        side = int(rng.integers(25, 76))
        top, left = rng.integers(0, size - side + 1, 2)
        index = int(rng.choice(indices))
        opacity = upscale(scans[index], side)
        mask = np.zeros((size, size), dtype=bool)
        mask[top : top + side, left : left + side] = opacity > 0.35
        box = tight_box(mask)
        if any(overlap(box, other['box']) > 0.05 for other in digits):
            continue
        paint(rng, image[top : top + side, left : left + side], opacity)
        for other in digits:
            other['mask'] &= ~mask
            other['box'] = tight_box(other['mask'])
        digits.append(dict(scan=index, mask=mask, box=box))
        if len(digits) == wanted:
            break
    return image.round().astype(np.uint8), digits


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest (left, top, width, height) that holds every pixel of ``mask``."""
    return cv2.boundingRect(mask.astype(np.uint8))


def overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Return how much of the smaller box the other one covers, in [0, 1]."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    return max(width, 0) * max(height, 0) / min(one[2] * one[3], two[2] * two[3])


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture or a label map; raise OSError if it cannot be written."""
    if not cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image):
        raise OSError(f'cannot write {path}: is the disk full, or the folder read-only?')


def write_classification(
    root: Path,
    rng: np.random.Generator,
    scans: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    renderings: int,
    size: int,
) -> None:
    """Write ``<class>/scan<index>_<rendering>.png`` under ``root``, ``renderings`` of each scan."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for index in indices:
        for number in range(renderings):
            path = root / CLASSES[labels[index]] / f'scan{index:04d}_{number:02d}.png'
            write_image(path, render_digit(rng, scans[index], size))


def write_detection(
    root: Path,
    annotation_file: Path,
    label_root: Path,
    rng: np.random.Generator,
    scans: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    scenes: int,
    size: int,
) -> None:
    """Write ``scenes`` pictures under ``root``, and what is in them as COCO file and label maps.

    Beside COCO's own fields, each annotation holds ``scan``, the index of the scan it shows.
    """
    root.mkdir(parents=True)
    label_root.mkdir(parents=True)
    images, annotations = [], []
    for scene in range(1, scenes + 1):
        picture, digits = render_scene(rng, scans, indices, size)
        name = f'{scene:06d}.png'
        write_image(root / name, picture)
        label_map = np.zeros((size, size), np.uint8)
        for digit in digits:
            label_map[digit['mask']] = labels[digit['scan']] + 1
        write_image(label_root / name, label_map)
        images.append(dict(id=scene, file_name=name, width=size, height=size))
        for digit in digits:
            segmentation = rle_codec.encode(np.asfortranarray(digit['mask'], dtype=np.uint8))
            segmentation['counts'] = segmentation['counts'].decode('ascii')
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=scene,
                    category_id=int(labels[digit['scan']]) + 1,
                    bbox=list(digit['box']),
                    area=int(digit['mask'].sum()),
                    segmentation=segmentation,
                    iscrowd=0,
                    scan=digit['scan'],
                )
            )
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, start=1)]
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    annotation_file.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def write_all(root: Path, settings: DigitsSettings) -> None:
    """Write both sets and the manifest into the empty folder ``root``."""
    scans, labels = load_scans()
    parts = split_scans(labels, settings.seed)
    scenes = dict(train=settings.train_scenes, val=settings.val_scenes)
    renderings = dict(train=settings.renderings, val=1)
    for number, (split, indices) in enumerate(parts.items()):
        drawing = scans, labels, indices
        write_classification(
            root / 'imagenet' / split,
            np.random.default_rng([settings.seed, number, 0]),
            *drawing,
            renderings[split],
            settings.image_size,
        )
        write_detection(
            root / 'coco' / split,
            root / 'coco' / 'annotations' / f'instances_{split}.json',
            root / 'coco' / 'labels' / split,
            np.random.default_rng([settings.seed, number, 1]),
            *drawing,
            scenes[split],
            settings.scene_size,
        )
    (root / MANIFEST).write_text(
        json.dumps(
            dict(maker=MAKER, format=FORMAT, settings=asdict(settings), files=count_files(root)),
            indent=2,
        )
    )


def count_files(root: Path) -> dict[str, int]:
    """Count the files of each part of the data under ``root``; 0 for a part that is missing."""
    parts = [f'{kind}/{split}' for kind in ('imagenet', 'coco') for split in SPLITS]
    parts += ['coco/annotations', *(f'coco/labels/{split}' for split in SPLITS)]
    return {part: sum(path.is_file() for path in Path(root, part).rglob('*')) for part in parts}


def read_manifest(root: Path) -> dict | None:
    """Return the manifest in ``root``, or None where there is none that this file wrote."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get('maker') == MAKER else None


def is_complete(root: Path, settings: DigitsSettings) -> bool:
    """Tell whether ``root`` holds every file made with exactly these settings."""
    manifest = read_manifest(root)
    return (
        manifest is not None
        and manifest.get('format') == FORMAT
        and manifest.get('settings') == asdict(settings)
        and manifest.get('files') == count_files(root)
    )


def make_digits(root: str | os.PathLike, settings: DigitsSettings | None = None) -> bool:
    """Make both image sets under ``root``, unless they are there already.

    They are written to a folder beside ``root`` that takes its name only when complete, so an
    interrupted run leaves nothing that looks finished. Sets of other settings and incomplete
    ones are replaced; a folder this function did not make is never touched.

    Args:
        root: The folder to make.
        settings: What to make. Default ``DigitsSettings()``.

    Returns:
        True if the sets were made, False if they were there.

    Raises:
        FileExistsError: If ``root`` exists, is not empty and was not made here.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    root = Path(root)
    settings = settings or DigitsSettings()
    if is_complete(root, settings):
        return False
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and read_manifest(root) is None:
        raise FileExistsError(
            f'{root} exists and was not made by {MAKER}, so it is left as it is; '
            'name another folder, or move this one away'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        fresh = beside / 'fresh'
        fresh.mkdir()
        write_all(fresh, settings)
        if root.exists():
            os.replace(root, beside / 'replaced')
        os.replace(fresh, root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return True


def main() -> None:
    defaults = DigitsSettings()
    parser = argparse.ArgumentParser(description='Make the digits data of configs/demo.')
    parser.add_argument('root', nargs='?', default='data/digits', help='default: %(default)s')
    for name, value in asdict(defaults).items():
        parser.add_argument(
            f'--{name.replace("_", "-")}', type=int, default=value, help='default: %(default)s'
        )
    options = vars(parser.parse_args())
    root = options.pop('root')
    try:
        made = make_digits(root, DigitsSettings(**options))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.exit(1, f'error: {error}\n')
    counts = ', '.join(f'{count} in {part}' for part, count in count_files(Path(root)).items())
    print(f'{root} {"made" if made else "is complete"}: {counts}')


if __name__ == '__main__':
    main()
