_base_ = './_base_/mask-rcnn_compared-mobilenet-v2_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            init_cfg=dict(
                checkpoint=f'{_base_.work_dirs}/odconv-mobilenet-v2-w100-4x_8xb32-150e_in1k/epoch_150.pth'
            ),
        ),
        layer=dict(type='ODConv2d', num_kernels=4),
    )
)
