_base_ = ['mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py', './_base_/kw-resnet50.py']
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(pretrained=None, backbone=dict(_delete_=True, **_base_.dynamic_backbone))
