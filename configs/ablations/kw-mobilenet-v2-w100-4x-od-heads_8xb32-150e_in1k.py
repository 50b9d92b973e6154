_base_ = '../imagenet/kw-mobilenet-v2-w100-4x_8xb32-150e_in1k.py'

# Table 17: with ODConv's attentions of channels, filters and spatial positions.
model = dict(backbone=dict(attention=dict(od_heads=True)))
