_base_ = './_base_/mask-rcnn_compared-resnet50_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        backbone=dict(
            init_cfg=dict(
                checkpoint=f'{_base_.work_dirs}/dyconv-resnet50-4x_8xb512-300e_in1k/epoch_300.pth'
            )
        ),
        layer=dict(type='DYConv2d', num_kernels=4),
        layers=['layer*'],
    )
)
