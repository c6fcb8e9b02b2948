"""Mice to train on."""

from tiny_fixtures import mice, run, runs, torch_settings

__all__ = ["mice", "run", "runs", "torch_settings"]
