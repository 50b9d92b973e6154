_base_ = './_base_/mask-rcnn_kw-resnet50_fpn_ms-1x.py'

# budget=None is the plain ResNet, which has no drop path.
model = dict(
    backbone=dict(
        budget=None,
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint=f'{_base_.work_dirs}/resnet50_8xb512-300e_in1k/epoch_300.pth'),
    )
)
custom_hooks = []
