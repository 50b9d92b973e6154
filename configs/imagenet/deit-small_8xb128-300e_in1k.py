_base_ = './_base_/deit-small_8xb128-300e.py'

# budget=None is the plain VisionTransformer.
model = dict(backbone=dict(budget=None))
custom_hooks = []
