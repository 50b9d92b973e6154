# A narrow PSPNet with output stride 8 on scenes of scanned digits, for the tests: from random
# weights, so that the temperature is annealed. tools/dataset_converters/digits.py makes the data.
_base_ = '../../configs/segmentation/pspnet_kw-resnet50-1x-d8_4xb4-80k_ade20k-512x512.py'

norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(size=(128, 128))
head = dict(channels=64, num_classes=11, norm_cfg=norm_cfg)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        norm_cfg=norm_cfg,
        init_cfg=None,
    ),
    decode_head=dict(in_channels=128, **head),
    auxiliary_head=dict(in_channels=64, **head),
)

# Classes of pixels: ground, and the digits.
metainfo = dict(
    classes=('ground', *'0123456789'),
    palette=[
        [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48],
        [170, 80, 220], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212],
    ],
)  # fmt: skip
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root='data/digits/coco',
    img_suffix='.png',
    reduce_zero_label=False,
    metainfo=metainfo,
    # No flips: a mirrored digit is none.
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
)
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(data_prefix=dict(img_path='train', seg_map_path='labels/train'), **dataset),
    **loading,
)
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='val', seg_map_path='labels/val'), **dataset),
    **loading,
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=480, val_interval=240)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=480),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=240, save_optimizer=False, save_param_scheduler=False),
)
log_processor = dict(window_size=10)
# MMSegmentation counts iterations.
custom_hooks = [dict(type='KWTemperatureHook', iters=80)]
randomness = dict(seed=0)
