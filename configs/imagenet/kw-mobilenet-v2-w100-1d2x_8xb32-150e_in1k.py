_base_ = './_base_/mobilenet-v2_8xb32-150e.py'

# At this budget the classifier is a KW layer too.
model = dict(
    backbone=dict(budget=0.5),
    head=dict(
        type='KWLinearClsHead',
        budget=0.5,
        cell_ratio=(1, 1 / 40),
        attention=dict(reduction=1 / 32),
    ),
)
