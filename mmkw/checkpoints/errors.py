"""What goes wrong with checkpoint files."""

from __future__ import annotations

import pickle


class CheckpointError(pickle.UnpicklingError):
    """A file that cannot be read as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for something outside the list of harmless classes."""
