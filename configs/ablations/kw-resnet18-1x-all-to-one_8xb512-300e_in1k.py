_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Table 13: other cells to start from.
model = dict(backbone=dict(allocation='all_to_one'))
