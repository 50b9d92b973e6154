_base_ = './_base_/mask-rcnn_kw-resnet50_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        budget=4,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/kw-resnet50-4x_8xb512-300e_in1k/epoch_300.pth'
        ),
    )
)
