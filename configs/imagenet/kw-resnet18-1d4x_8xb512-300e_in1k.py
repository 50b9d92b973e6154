_base_ = './_base_/resnet18_8xb512-300e.py'

# At this budget the released model was trained without drop path, mixup and cutmix.
model = dict(backbone=dict(budget=0.25, drop_path_rate=0.0), train_cfg=None)
