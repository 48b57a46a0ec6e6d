"""Restore images: denoising, deblurring, super-resolution and other tasks whose output is an image."""
