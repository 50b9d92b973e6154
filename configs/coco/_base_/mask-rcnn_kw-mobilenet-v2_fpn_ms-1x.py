_base_ = './mask-rcnn_fpn_ms-1x.py'

# Width 1.0. Outputs of strides 4, 8, 16 and 32; the last is that of the last convolution. As in
# ResNet, frozen_stages=1 is the stem and the first stage, here conv1 and layer1 (16 channels).
model = dict(
    backbone=dict(
        _delete_=True,
        type='KWMobileNetV2',
        out_indices=(1, 2, 4, 7),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
