"""Evaluate a checkpoint with the model and test data of a config."""

from copy import deepcopy
from functools import partial

from cli_common import (
    argument_parser,
    build_runner,
    check_data,
    check_file,
    clear_errors,
    fail,
    load_config,
    naming_misfits,
)
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import METRICS

from mmkw import fold_attentions
from mmkw.analysis.configs import type_name

# How each visualization hook spells what --show, --show-dir and --wait-time set. Classification
# draws every 5000th image unless told otherwise, detection all of them.
_DRAWING = {
    'DetVisualizationHook': dict(switch=dict(draw=True), folder='test_out_dir'),
    'VisualizationHook': dict(switch=dict(enable=True, interval=1), folder='out_dir'),
    # The folder is that of the visualizer.
    'SegVisualizationHook': dict(switch=dict(draw=True, interval=1), folder=None),
}

# Test-time augmentation by a horizontal flip, for configs that define none.
_TTA_MODEL = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
    'mmseg': dict(type='SegTTAModel'),
}


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument('--out', metavar='PKL', help='write the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder to draw the predictions into')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show displays each image'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline, else a flip",
    )
    parser.add_argument(
        '--fold', nargs='?', type=float, const=4.0, metavar='CELLS',
        help='compute faster, with the same results, by folding the attentions of KW layers that '
        'have at least so many cells for each tensor to mix instead (see mmkw.fold_attentions). '
        'Without a number 4',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out writes a pickle file, so its name must end in .pkl, not {args.out!r}')
    return args


def apply_arguments(config, args):
    """Change the config as the arguments of testing ask."""
    check_file(args.checkpoint, 'checkpoint')
    config.resume = False
    config.load_from = args.checkpoint
    if args.show or args.show_dir is not None:
        _enable_drawing(config, args)
    if args.tta:
        _enable_tta(config)


def _enable_drawing(config, args):
    hook = config.get('default_hooks', {}).get('visualization') or {}
    drawing = _DRAWING.get(type_name(hook))
    if drawing is None:
        fail(
            f'--show and --show-dir need default_hooks.visualization of a type among '
            f'{", ".join(_DRAWING)}, but {args.config} has {type_name(hook)}'
        )
    if args.tta and type_name(hook) == 'VisualizationHook':
        fail('mmpretrain cannot draw the images of --tta; leave out --tta or the drawing')
    hook.update(drawing['switch'], show=args.show, wait_time=args.wait_time)
    if args.show_dir is not None and drawing['folder'] is None:
        config.visualizer.save_dir = args.show_dir
    elif args.show_dir is not None:
        hook[drawing['folder']] = args.show_dir


def _enable_tta(config):
    scope = config.get('default_scope')
    if 'tta_model' not in config:
        if scope not in _TTA_MODEL:
            fail(f'--tta needs a tta_model in the config, as there is no default for {scope!r}')
        config.tta_model = _TTA_MODEL[scope]
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in config:
        *transforms, pack = deepcopy(dataset.pipeline)
        if scope == 'mmdet' and 'meta_keys' in pack:
            # Needed to turn the boxes back.
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        config.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = config.tta_pipeline
    if type_name(config.tta_model) == 'DetTTAModel':
        _evaluate_boxes_alone(config)
    config.model = ConfigDict(**config.tta_model, module=config.model)


def _evaluate_boxes_alone(config):
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if isinstance(evaluator.get('metric'), (list, tuple)):
            evaluator.metric = [metric for metric in evaluator.metric if metric != 'segm']


class PrepareModel(Hook):
    """Changes the model right before it is tested, when its weights are loaded and averaged.

    Args:
        fold: See ``--fold``; ``None`` folds nothing.
        tta: Whether a detector is tested with augmentation, and so without masks.
    """

    # After EMAHook, which swaps the averaged weights in.
    priority = 'LOWEST'

    def __init__(self, fold, tta):
        self.fold, self.tta = fold, tta

    def before_test_epoch(self, runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self.tta and getattr(getattr(model.module, 'roi_head', None), 'with_mask', False):
            model.module.roi_head.mask_head = None
            runner.logger.info('--tta tests boxes alone: MMDetection cannot merge masks of views.')
        if self.fold is not None:
            # MMEngine does so right after this.
            added = fold_attentions(model.eval(), self.fold)
            runner.logger.info(
                f'--fold {self.fold:g}: attentions of {len(added)} layers are folded, which takes '
                f'{sum(added.values()) / 1e6:.1f} MB'
            )


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        apply_arguments(config, args)
        check_data(config, 'test')
        runner = build_runner(config)
        if args.out is not None:
            # MMDetection's variant writes masks in COCO's compressed form.
            kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
            dump = METRICS.build(dict(type=kind, out_file_path=args.out))
            runner.test_evaluator.metrics.append(dump)
        runner.register_hook(PrepareModel(args.fold, args.tta))
        # Strictly: the scores of a model with some random weights would mean nothing.
        runner.load_checkpoint = partial(runner.load_checkpoint, strict=True)
        with naming_misfits(args):
            runner.test()


if __name__ == '__main__':
    main()
