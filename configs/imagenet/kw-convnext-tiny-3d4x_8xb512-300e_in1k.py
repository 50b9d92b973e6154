_base_ = './_base_/convnext-tiny_8xb512-300e.py'

model = dict(backbone=dict(budget=0.75))
