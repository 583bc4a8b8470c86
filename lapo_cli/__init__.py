"""Latent action policies: learn to act from videos without actions (LAPO, ICLR 2024)."""

__version__ = "0.1.0"
