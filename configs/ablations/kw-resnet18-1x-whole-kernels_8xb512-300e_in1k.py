_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Table 5: cells are whole kernels; layers with kernels of one shape share them.
model = dict(backbone=dict(sharing='equal_shapes', spatial_partition=False))
