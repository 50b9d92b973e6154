"""Edits of state dicts, for files that are not as they were written."""

import torch


def drop(start):
    """An edit that removes the tensors whose names start so."""

    def edit(state_dict):
        for name in [name for name in state_dict if name.startswith(start)]:
            del state_dict[name]

    return edit


def put(**shapes):
    """An edit that sets tensors, named with ``__`` for a dot."""
    return lambda state_dict: state_dict.update(
        {name.replace('__', '.'): torch.zeros(shape) for name, shape in shapes.items()}
    )
