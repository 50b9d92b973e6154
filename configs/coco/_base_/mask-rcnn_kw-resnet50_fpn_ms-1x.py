# First stage frozen and norms in eval mode, which mmdet's base says already.
_base_ = './mask-rcnn_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        type='KWResNet',
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    )
)
