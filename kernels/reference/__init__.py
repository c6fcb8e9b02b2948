"""The operators in plain PyTorch: the definition, the path off CUDA, and what faster versions are compared with."""
