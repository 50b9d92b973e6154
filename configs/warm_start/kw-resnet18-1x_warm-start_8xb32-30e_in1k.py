# KWResNet18 1x from the weights of a plain ResNet18, for those who cannot train 100 epochs from
# scratch. At temperature 1, where annealing begins, it computes exactly what the plain network
# does. The schedule is a suggestion that nobody has measured on ImageNet: 30 epochs, a fifth of
# the learning rate of training from scratch, a cosine, and annealing over the first 5 epochs. The
# new attentions have to learn meanwhile: in a single short epoch on the demo's digits a quarter of
# the rate of training from scratch was too little (27 % right, against 64 % with the whole rate).
#
# Save the plain checkpoint, then convert it to the file that `load_from` names:
#
#   import torch, torchvision
#   network = torchvision.models.resnet18(weights='IMAGENET1K_V1')
#   torch.save(network.state_dict(), 'resnet18.pth')
#
#   python tools/model_converters/plain_to_mmkw.py \
#       configs/warm_start/kw-resnet18-1x_warm-start_8xb32-30e_in1k.py \
#       resnet18.pth kw-resnet18-1x_from-plain.pth
_base_ = '../imagenet/kw-resnet18-1x_8xb32-100e_in1k.py'

load_from = 'kw-resnet18-1x_from-plain.pth'

train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=30, convert_to_iter_based=True)
]
custom_hooks = [dict(type='KWTemperatureHook', epochs=5)]
