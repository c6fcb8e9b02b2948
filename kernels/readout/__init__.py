"""Neurons that sample maps at their positions."""

from .operator import readout

__all__ = ["readout"]
