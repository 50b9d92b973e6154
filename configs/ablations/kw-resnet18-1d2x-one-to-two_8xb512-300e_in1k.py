_base_ = '../imagenet/kw-resnet18-1d2x_8xb512-300e_in1k.py'

# Table 13: other cells to start from.
model = dict(backbone=dict(allocation='one_to_two'))
