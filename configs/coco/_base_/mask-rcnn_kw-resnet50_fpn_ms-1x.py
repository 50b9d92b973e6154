# Stem and first stage frozen and norms in eval mode, which mmdet's base says already. Drop path is
# that of the classifiers.
_base_ = './mask-rcnn_fpn_ms-1x.py'

model = dict(
    backbone=dict(
        type='KWResNet',
        drop_path_rate=0.1,
        constant_drop_path=True,
        zero_init_residual=False,
        freeze_idle_warehouses=False,
        init_cfg=dict(type='Pretrained', prefix='backbone.'),
    )
)
