_base_ = './_base_/mask-rcnn_kw-convnext-tiny_fpn_ms-1x.py'

# budget=None is the plain ConvNeXt.
model = dict(
    backbone=dict(
        budget=None,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/convnext-tiny_8xb512-300e_in1k/epoch_300.pth'
        ),
    )
)
custom_hooks = []
