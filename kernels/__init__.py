"""Operators of the hot path. Imports nothing of the rest of the package."""
