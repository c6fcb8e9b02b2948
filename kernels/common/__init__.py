"""What the operators share: the choice of an implementation, tiles, random numbers, lanes of a CPU, precision."""
