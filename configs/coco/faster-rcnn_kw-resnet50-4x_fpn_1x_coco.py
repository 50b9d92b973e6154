_base_ = './_base_/faster-rcnn_fpn_1x.py'

model = dict(
    backbone=dict(
        type='KWResNet',
        budget=4,
        zero_init_residual=False,
        freeze_idle_warehouses=False,
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            prefix='backbone.',
            checkpoint=f'{_base_.work_dirs}/kw-resnet50-4x_8xb512-300e_in1k/epoch_300.pth',
        ),
    )
)
