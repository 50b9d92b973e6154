_base_ = '../imagenet/resnet18_8xb32-100e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='RecalibratedResNet',
        depth=18,
        zero_init_residual=False,
        recalibration=dict(type='ECA'),
    )
)
