_base_ = './_base_/mask-rcnn_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            type='KWMobileNetV2',
            widen_factor=1.0,
            budget=None,
            out_indices=(1, 2, 4, 7),
            frozen_stages=2,
            norm_eval=True,
            init_cfg=dict(
                type='Pretrained',
                prefix='backbone.',
                checkpoint=f'{_base_.work_dirs}/dyconv-mobilenet-v2-w100-4x_8xb32-150e_in1k/epoch_150.pth',
            ),
        ),
        layer=dict(type='DYConv2d', num_kernels=4),
        layers=['layer*', 'conv2.conv'],
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
