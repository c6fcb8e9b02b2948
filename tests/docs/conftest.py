"""Mice for the documentation's commands."""

from tiny_fixtures import mice, torch_settings

__all__ = ["mice", "torch_settings"]
