"""ViV1T of 2025 (Li et al., bioRxiv 2025.09.16.676524): causal, with rotary positions, whole trials, registers."""
