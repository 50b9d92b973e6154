# Faster R-CNN as FDConv's authors train it: from torchvision's plain ResNet50, whose kernels become
# spectra; MMDetection's 1x schedule on two GPUs with eight images each, in single precision, with
# activation checkpointing.
_base_ = './_base_/faster-rcnn_fpn_1x.py'

# Stem and layer1 are frozen, but the gates of layer1 train.
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            type='mmdet.ResNet',
            depth=50,
            frozen_stages=0,
            norm_eval=True,
            with_cp=True,
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
        ),
        layer=dict(type='FDConv2d'),
        layers=['layer*.conv?'],
        only_attentions_train_in=['layer1'],
    ),
)

train_dataloader = dict(batch_size=8, num_workers=8)
custom_hooks = []
