"""ViV1T of 2023, as the authors trained it for the Sensorium challenge; `definition` is the family as a value."""
