"""The published model the plain way: eager PyTorch as a research script writes it, what the engine is compared with.

Only what the published default command uses, and the sequential block; parameters bear the published names.
"""
