"""Show which layers of a config's backbone share which warehouse, and what that comes to.

A dry run: a KWBackbone is planned on its plain backbone, without making any warehouse. The
backbones with a plan of their own (KWResNet and others) are built, and their plan read off.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import argument_parser, clear_errors, fail, load_config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

from mmkw.analysis.configs import type_name  # noqa: E402
from mmkw.networks import NetworkPlan  # noqa: E402
from mmkw.openmmlab.backbones.any_backbone import backbone_plan, build_plain  # noqa: E402


def plan_of(backbone):
    """Plan the backbone that a config describes.

    Raises:
        ValueError: If it cannot be planned or has no warehouses.
    """
    if type_name(backbone) != 'KWBackbone':
        return NetworkPlan.of_built(MODELS.build(backbone))
    others = ('type', '_scope_', 'freeze_idle_warehouses')
    arguments = {key: value for key, value in backbone.items() if key not in others}
    network = build_plain(arguments.pop('backbone'))
    return backbone_plan(network, **arguments)


def main(argv=None):
    args = argument_parser(__doc__).parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        init_default_scope(config.get('default_scope', 'mmengine'))
        backbone = (config.get('model') or {}).get('backbone')
        if backbone is None:
            fail(f'{args.config} has no model.backbone, whose plan could be shown')
        print(plan_of(backbone))


if __name__ == '__main__':
    main()
