"""DiffusionMTL (CVPR 2024): multi-task dense prediction by denoising, learned from partially labelled images."""

__version__ = "0.1.0"
