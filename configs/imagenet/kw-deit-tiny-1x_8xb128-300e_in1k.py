_base_ = './_base_/deit-tiny_8xb128-300e.py'

model = dict(backbone=dict(budget=1))
