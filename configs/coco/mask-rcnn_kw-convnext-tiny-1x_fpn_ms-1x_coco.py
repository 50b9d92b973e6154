_base_ = './_base_/mask-rcnn_kw-convnext-tiny_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        budget=1,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/kw-convnext-tiny-1x_8xb512-300e_in1k/epoch_300.pth'
        ),
    )
)
