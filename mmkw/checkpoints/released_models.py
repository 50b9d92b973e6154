"""The classifiers and detectors of the authors' releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..meta_device import on_meta_device

CLASSIFIER, DETECTOR = 'ImageClassifier', 'MaskRCNN'


@dataclass(frozen=True)
class IdentifiedModel:
    """The model that the tensors of a released file belong to.

    Attributes:
        meta: the class of the ``model``, the configs of its ``backbone`` and of a classifier's
            ``head``, and the file ``config`` for such a model (``None`` if there is none).
        model: without weights: its parameters are on the meta device.
        targets: the released name of each tensor of backbone and classifier -> its name in
            ``model``.
    """

    meta: dict[str, Any]
    model: nn.Module
    targets: dict[str, str]


def build_classifier(backbone: dict[str, Any], head: dict[str, Any]) -> nn.Module:
    """The classifier with a backbone and a head of these configs, on the meta device."""
    with DefaultScope.overwrite_default_scope('mmpretrain'), on_meta_device():
        return MODELS.build(dict(type=CLASSIFIER, backbone=backbone, head=head))


def build_detector(backbone: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    """The Mask R-CNN of configs/coco, whose base is MMDetection's, on the meta device.

    Args:
        backbone: its config.
        channels: of its four outputs.
    """
    config = get_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py').model
    config.backbone = dict(backbone)
    config.neck.in_channels = list(channels)
    with DefaultScope.overwrite_default_scope('mmdet'), on_meta_device():
        return MODELS.build(config)
