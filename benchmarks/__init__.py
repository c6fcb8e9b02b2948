"""Measurements, one pytest file per subject: `pytest benchmarks -k SUBJECT`."""
