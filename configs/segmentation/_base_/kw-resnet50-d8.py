# The outputs of all stages but the first have stride 8.
_base_ = './kw-resnet50.py'

dynamic_backbone = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
