# Other dynamic convolutions, trained as KW networks are. budget=None is the plain ResNet, some of
# whose layers are replaced.
_base_ = './mask-rcnn_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            type='KWResNet',
            depth=50,
            budget=None,
            drop_path_rate=0.1,
            constant_drop_path=True,
            zero_init_residual=False,
            out_indices=(0, 1, 2, 3),
            frozen_stages=1,
            norm_eval=True,
            init_cfg=dict(type='Pretrained', prefix='backbone.'),
        ),
    )
)
