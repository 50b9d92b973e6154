"""Pictures of what a detector finds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis import inference_detector, init_detector
from mmdet.visualization import DetLocalVisualizer
from torchvision.ops import nms

from mmkw.files import write_whole

PALETTE = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (170, 80, 220), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
]  # fmt: skip


def draw_predictions(
    config: str | os.PathLike,
    checkpoint: str,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
) -> None:
    """Draw a detector's boxes and masks into images, three times enlarged and four in a row.

    Shown are scores of at least 0.5, and of boxes with an IoU above 0.3 the best one.

    Args:
        config: file of an MMDetection config with masks.
        checkpoint: file of its weights.
        images: files of images of one size.
        out: the picture to write; its suffix names the format.
    """
    with contextlib.redirect_stdout(None):
        model = init_detector(str(config), checkpoint, palette='random', device='cpu')
    classes = model.dataset_meta['classes']
    visualizer = DetLocalVisualizer()
    drawings = []
    for path in images:
        image = cv2.imread(str(path))
        size = [3 * side for side in image.shape[1::-1]]
        # Repeating pixels lets the model's own resizing restore the image exactly, while boxes
        # and masks come out at the size of the drawing.
        enlarged = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
        found = inference_detector(model, enlarged).pred_instances
        found = found[found.scores >= 0.5]
        found = found[nms(found.bboxes, found.scores, 0.3)]
        visualizer.set_image(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)[..., ::-1])
        if len(found):
            colours = [PALETTE[label % len(PALETTE)] for label in found.labels]
            labels = [f'{classes[i]}: {s:.2f}' for i, s in zip(found.labels, found.scores)]
            visualizer.draw_binary_masks(found.masks.numpy(), colors=colours, alphas=0.45)
            visualizer.draw_bboxes(found.bboxes, edge_colors=colours, line_widths=2)
            corners = found.bboxes[:, :2].clone()
            corners[:, 1].clamp_(min=20)
            visualizer.draw_texts(
                labels,
                corners,
                font_sizes=12,
                colors='white',
                vertical_alignments='bottom',
                bboxes=dict(facecolor='black', alpha=0.7, pad=1, edgecolor='none'),
            )
        drawings.append(
            cv2.copyMakeBorder(
                visualizer.get_image(), 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)
            )
        )
    rows = [np.hstack(drawings[i : i + 4]) for i in range(0, len(drawings), 4)]
    _, picture = cv2.imencode(Path(out).suffix, np.vstack(rows)[..., ::-1])
    write_whole(picture.tobytes(), out)
