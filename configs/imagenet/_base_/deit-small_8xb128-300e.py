_base_ = './deit-tiny_8xb128-300e.py'

model = dict(backbone=dict(arch='deit-small'), head=dict(in_channels=384))
