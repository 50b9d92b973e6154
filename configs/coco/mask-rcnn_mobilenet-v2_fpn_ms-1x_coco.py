_base_ = './_base_/mask-rcnn_kw-mobilenet-v2_fpn_ms-1x.py'

# budget=None is the plain MobileNetV2.
model = dict(
    backbone=dict(
        budget=None,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/mobilenet-v2-w100_8xb32-150e_in1k/epoch_150.pth'
        ),
    )
)
custom_hooks = []
