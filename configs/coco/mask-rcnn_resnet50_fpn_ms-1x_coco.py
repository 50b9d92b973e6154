_base_ = './_base_/mask-rcnn_kw-resnet50_fpn_ms-1x.py'

# budget=None is the plain ResNet: the baseline differs from the others in the budget alone.
model = dict(
    backbone=dict(
        budget=None,
        init_cfg=dict(checkpoint='work_dirs/resnet50_8xb512-300e_in1k/epoch_300.pth'),
    )
)
custom_hooks = []
