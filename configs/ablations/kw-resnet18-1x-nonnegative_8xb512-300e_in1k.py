_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Table 8: another attention function.
model = dict(backbone=dict(attention=dict(function='nonnegative')))
