"""Mice to train on."""

from tiny_fixtures import mice, run, torch_settings

__all__ = ["mice", "run", "torch_settings"]
