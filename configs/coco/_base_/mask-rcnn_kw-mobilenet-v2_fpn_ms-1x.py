_base_ = './mask-rcnn_fpn_ms-1x.py'

# Width 1.0. Outputs of strides 4, 8, 16 and 32; the last is that of the last convolution. Stem,
# layer1 and layer2 are frozen. Warehouses train nevertheless, also where all their layers are.
model = dict(
    backbone=dict(
        _delete_=True,
        type='KWMobileNetV2',
        out_indices=(1, 2, 4, 7),
        frozen_stages=2,
        freeze_idle_warehouses=False,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
