# The first half of `make demo`: pretraining on renderings of scanned digits. The model is that of
# the ImageNet config; data, size and schedule are what two cores do in minutes. The data comes
# from tools/dataset_converters/digits.py.
_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

classes = tuple('0123456789')
data_preprocessor = dict(num_classes=10)
# What keeps 300 epochs from overfitting only slows down a single one: no mixtures of images, no
# dropped paths, and nothing random in the pipeline. The renderings vary as it is.
# The initialisation is mmpretrain's, with which the scores in the README were measured.
model = dict(
    backbone=dict(drop_path_rate=0.0, zero_init_residual=True),
    head=dict(
        num_classes=10,
        topk=(1,),
        init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01),
    ),
    train_cfg=None,
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=32),
    dict(type='PackInputs'),
]
dataset = dict(data_root='data/digits/imagenet', pipeline=pipeline, metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=16, num_workers=0, dataset=dataset)
val_dataloader = dict(batch_size=16, num_workers=0, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=1)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=16)
custom_hooks = [dict(type='KWTemperatureHook', iters=240)]

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(
        interval=-1,
        save_last=True,
        save_best=None,
        save_optimizer=False,
        save_param_scheduler=False,
    ),
)
log_processor = dict(window_size=10)
randomness = dict(seed=0)
