_base_ = './_base_/mask-rcnn_kw-mobilenet-v2_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        budget=4,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/kw-mobilenet-v2-w100-4x_8xb32-150e_in1k/epoch_150.pth'
        ),
    )
)
