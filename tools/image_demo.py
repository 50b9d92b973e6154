"""Show what a trained model sees in an image, or in each image of a folder.

python tools/image_demo.py photo.jpg CONFIG CHECKPOINT
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cli_common import (
    add_debug_option,
    check_file,
    clear_errors,
    naming_misfits,
    read_config,
)
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


class Finding(NamedTuple):
    """A class that a model sees in an image.

    Attributes:
        name: of the class; its number if the class names are not known.
        score: between 0 and 1; of a segmentation the part of the pixels that are of the class.
        box: left, top, right and bottom edge in pixels; only of a detector.
    """

    name: str
    score: float
    box: tuple[float, ...] | None = None


def images_in(path: str | os.PathLike) -> list[str]:
    """The image of a path, or all images in a folder.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no image in it.
    """
    path = Path(path)
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise FileNotFoundError(f'image {path} does not exist; name an image or a folder of images')
    images = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(
            f'folder {path} holds no image; the names of images end in {", ".join(IMAGE_SUFFIXES)}'
        )
    return images


def look_at_images(
    config: Config,
    checkpoint: str,
    images: Sequence[str],
    out: str | os.PathLike,
    device: str | None = None,
    min_score: float = 0.3,
) -> Iterator[tuple[str, list[Finding], Path]]:
    """Predict and draw images one by one.

    Class names come from the checkpoint, or from the config's test data if it has none.

    Args:
        config: of a classifier of MMPretrain, a detector of MMDetection or a network of
            MMSegmentation.
        checkpoint: file of its weights.
        images: files.
        out: folder for the drawings, is made.
        device: defaults to a GPU if there is one, else the CPU.
        min_score: of the objects that a detector shows. Defaults to 0.3.

    Yields:
        Each image, what was found, the highest score first (a classifier's five best classes, all
        classes of a segmentation), and the file of the drawing.

    Raises:
        ValueError: if the config is of another package, an image cannot be read, or its drawing
            would take its place.
        RuntimeError: if the checkpoint does not fit the model.
    """
    scope = config.get('default_scope')
    looks = {
        'mmpretrain': (_classify, _png_drawing),
        'mmdet': (_detect, _detector_drawing),
        'mmseg': (_segment, _png_drawing),
    }
    if scope not in looks:
        raise ValueError(
            f'default_scope must be mmpretrain, for a classifier, mmdet, for a detector, or mmseg, '
            f'for a segmentation, but is {scope!r}'
        )
    look, drawing_of = looks[scope]
    for image in images:
        drawing = drawing_of(Path(out), image)
        if drawing.exists() and drawing.samefile(image):
            raise ValueError(
                f'the drawing of {image} would take its place; name another folder than {out} for '
                f'the drawings'
            )
    # MMDetection's inferencer does so too; MMPretrain's takes the scope as it is.
    init_default_scope(scope)
    Path(out).mkdir(parents=True, exist_ok=True)
    return look(config, checkpoint, images, Path(out), device, min_score)


def _png_drawing(out: Path, image: str) -> Path:
    """Where MMPretrain draws an image, and MMSegmentation is told to."""
    return (out / Path(image).stem).with_suffix('.png')


def _detector_drawing(out: Path, image: str) -> Path:
    """Where MMDetection draws an image."""
    return out / 'vis' / Path(image).name


def _classify(config, checkpoint, images, out, device, min_score):
    from mmpretrain.apis import ImageClassificationInferencer

    # Loaded below, strictly: scores of a model with some random weights would mean nothing.
    inferencer = ImageClassificationInferencer(config, pretrained=False, device=device)
    meta = _load(inferencer.model, checkpoint)
    inferencer.classes = _classes(meta, config)
    for image in images:
        # Without its progress bar.
        with contextlib.redirect_stdout(io.StringIO()):
            (result,) = inferencer(image, show_dir=str(out))
        scores = result['pred_scores']
        best = scores.argsort()[::-1][:5]
        names = inferencer.classes or range(len(scores))
        findings = [Finding(str(names[label]), float(scores[label])) for label in best]
        yield image, findings, _png_drawing(out, image)


def _detect(config, checkpoint, images, out, device, min_score):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(config, checkpoint, device, show_progress=False)
    meta = _load(inferencer.model, checkpoint)
    classes = _classes(meta, config) or inferencer.model.dataset_meta['classes']
    inferencer.model.dataset_meta['classes'] = classes
    inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
    for image in images:
        results = inferencer(image, out_dir=str(out), pred_score_thr=min_score)
        (found,) = results['predictions']
        rows = zip(found['labels'], found['scores'], found['bboxes'])
        findings = [
            Finding(str(classes[label]), score, tuple(box))
            for label, score, box in rows
            if score >= min_score
        ]
        findings.sort(key=lambda finding: finding.score, reverse=True)
        yield image, findings, _detector_drawing(out, image)


def _segment(config, checkpoint, images, out, device, min_score):
    from mmseg.apis import inference_model, init_model, show_result_pyplot

    model = init_model(config, device=device or get_device())
    model.dataset_meta = _dataset_meta(_load(model, checkpoint), config)
    classes = model.dataset_meta['classes']
    for image in images:
        result = inference_model(model, image)
        shares = result.pred_sem_seg.data.flatten().bincount(minlength=len(classes)).double()
        shares /= shares.sum()
        findings = [
            Finding(classes[label], float(shares[label]))
            for label in shares.argsort(descending=True, stable=True)
            if shares[label] > 0
        ]
        drawing = _png_drawing(out, image)
        show_result_pyplot(model, image, result, draw_gt=False, show=False, out_file=str(drawing))
        yield image, findings, drawing


def _load(model: Any, checkpoint: str) -> dict:
    return load_checkpoint(model, checkpoint, map_location='cpu', strict=True).get('meta', {})


def _classes(meta: dict, config: Config) -> Sequence[str] | None:
    return _dataset_meta(meta, config).get('classes')


def _dataset_meta(meta: dict, config: Config) -> dict:
    """What is known of the classes: by the checkpoint, or else by the config's test data."""
    known = meta.get('dataset_meta') or {}
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return known if known.get('classes') else dict(dataset.get('metainfo') or {})


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='an image, or a folder of images')
    parser.add_argument('config', help='config of MMPretrain, MMDetection or MMSegmentation')
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument(
        '--out-dir', default='outputs', help='folder for the drawings (default: %(default)s)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0; default: a GPU if there is one')
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='least score of the objects that a detector shows (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings to change in the config',
    )  # fmt: skip
    add_debug_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug), naming_misfits(args):
        config = read_config(args.config, args.cfg_options)
        check_file(args.checkpoint, 'checkpoint')
        images = images_in(args.image)
        looks = look_at_images(
            config, args.checkpoint, images, args.out_dir, args.device, args.score_thr
        )
        for image, findings, drawing in looks:
            print(f'{image} -> {drawing}')
            if not findings:
                print(f'  nothing with a score of at least {args.score_thr}')
            for name, score, box in findings:
                edges = '' if box is None else '  at ' + ', '.join(f'{edge:.0f}' for edge in box)
                print(f'  {score:.3f}  {name}{edges}')


if __name__ == '__main__':
    main()
