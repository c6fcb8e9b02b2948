"""Operators of the hot path, a room each, and what they share. Imports nothing of the rest of the package."""
