"""A Transformer block with attention and feed-forward side by side."""

from .operator import parallel_block
from .settings import BlockSettings, BlockWeights

__all__ = ["BlockSettings", "BlockWeights", "parallel_block"]
