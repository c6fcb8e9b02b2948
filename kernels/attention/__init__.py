"""Softmax attention over packed queries, keys and values."""

from .operator import attention

__all__ = ["attention"]
