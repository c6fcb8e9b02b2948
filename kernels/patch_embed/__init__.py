"""Overlapping patches of a video, normalised and projected."""

from .operator import patch_embed

__all__ = ["patch_embed"]
