# ResNet50 as FDConv's authors have it in detectors: torchvision's plain network, whose kernels
# become spectra. Stem and layer1 are frozen, but the gates of layer1 train.
plain_backbone = dict(
    type='mmdet.ResNet',
    depth=50,
    frozen_stages=0,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
fdconv = dict(
    type='DynamicBackbone',
    layer=dict(type='FDConv2d'),
    layers=['layer*.conv?'],
    only_attentions_train_in=['layer1'],
)
