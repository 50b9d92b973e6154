# What the released ConvNeXt detectors do differently: drop path that grows linearly from 0 in the
# first block to 0.4 in the last, a tenth of the learning rate after epochs 9 and 11, and learning
# rates that fall by 0.95 per layer down to the stem, so that nothing is frozen, as in ConvNeXt's
# own detectors. Layer norms have no eval mode.
_base_ = './mask-rcnn_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='KWConvNeXt',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

# mmdet's constructor goes by names as the release's does: attentions have the rate of their layer;
# warehouses, which are no layers, have that of the heads. No decay on biases and other vectors;
# the layer scales of KW networks, of shape (1, C, 1, 1), are none.
optim_wrapper = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, decay_type='layer_wise', decay_rate=0.95, num_layers=6),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[9, 11], gamma=0.1),
]
