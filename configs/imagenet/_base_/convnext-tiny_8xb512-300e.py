# mmpretrain's model has the recipe's mixup, cutmix and label smoothing. Drop path grows linearly
# from 0 in the first block to 0.3 in the last.
_base_ = ['mmpretrain::_base_/models/convnext/convnext-tiny.py', './advanced_8xb512-300e.py']

model = dict(backbone=dict(type='KWConvNeXt', drop_path_rate=0.3))

# A moving average of 0.9999. Validation measures the average (`accuracy/top1`) and the weights
# (`accuracy/top1_origin`). A checkpoint's `state_dict` is the average (`ema_state_dict` holds the
# weights that training goes on with), so that testing and detectors start from it.
ema_hook = dict(
    type='EMAHook',
    momentum=1e-4,
    evaluate_on_ema=True,
    evaluate_on_origin=True,
    priority='ABOVE_NORMAL',
)
custom_hooks = [dict(type='KWTemperatureHook', epochs=20), ema_hook]
