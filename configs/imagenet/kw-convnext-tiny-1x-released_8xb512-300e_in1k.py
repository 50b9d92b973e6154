_base_ = './_base_/convnext-tiny_8xb512-300e.py'

# The released 1x model is not the paper's: stage 3 shares one pair of warehouses instead of three,
# and the attentions are twice as wide.
model = dict(
    backbone=dict(budget=1, blocks_per_warehouse=None, attention=dict(reduction=1 / 16)),
)
