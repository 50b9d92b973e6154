_base_ = '../imagenet/kw-resnet50-1x_8xb512-300e_in1k.py'

# Table 7: only layers of a stage with kernels of one shape share a warehouse.
model = dict(backbone=dict(sharing='equal_shapes'))
