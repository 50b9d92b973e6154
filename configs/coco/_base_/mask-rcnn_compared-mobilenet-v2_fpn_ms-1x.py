# Other dynamic convolutions, in all convolutions but the stem, trained as KW networks are.
_base_ = './mask-rcnn_fpn_ms-1x.py'

# Each config adds the class of the plain MobileNetV2 whose layers are replaced.
model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            widen_factor=1.0,
            out_indices=(1, 2, 4, 7),
            frozen_stages=2,
            norm_eval=True,
            init_cfg=dict(type='Pretrained', prefix='backbone.'),
        ),
        layers=['layer*', 'conv2.conv'],
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
