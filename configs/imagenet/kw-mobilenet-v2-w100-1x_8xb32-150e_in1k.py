_base_ = './_base_/mobilenet-v2_8xb32-150e.py'

# This model was released with label smoothing.
model = dict(
    backbone=dict(budget=1),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
