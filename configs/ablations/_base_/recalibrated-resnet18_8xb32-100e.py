# ResNet18 whose blocks recalibrate their outputs, by the recipe of the plain one.
_base_ = '../../imagenet/resnet18_8xb32-100e_in1k.py'

model = dict(
    backbone=dict(_delete_=True, type='RecalibratedResNet', depth=18, zero_init_residual=False)
)
