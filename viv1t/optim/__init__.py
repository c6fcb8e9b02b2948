"""Optimizers, their schedules, and what happens to gradients before a step."""
