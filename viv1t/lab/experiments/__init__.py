"""The experiments: what each shows, and the table that it makes of the responses.

Every module has `plans`, from rich to lean, and `table`, a column of N values for each name. `reason` says why a neuron
has NaN, and is empty where it has none.
"""
