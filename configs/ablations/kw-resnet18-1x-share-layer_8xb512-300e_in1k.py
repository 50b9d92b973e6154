_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Table 6: each layer has a warehouse of its own.
model = dict(backbone=dict(sharing='layer'))
