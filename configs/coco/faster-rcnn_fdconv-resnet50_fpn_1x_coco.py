# Faster R-CNN as FDConv's authors train it: MMDetection's 1x schedule on two GPUs with eight images
# each, in single precision, with activation checkpointing.
_base_ = ['./_base_/faster-rcnn_fpn_1x.py', './_base_/fdconv-resnet50.py']

model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(
        _delete_=True, backbone=dict(**_base_.plain_backbone, with_cp=True), **_base_.fdconv
    ),
)

train_dataloader = dict(batch_size=8, num_workers=8)
custom_hooks = []
