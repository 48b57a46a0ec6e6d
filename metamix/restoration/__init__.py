"""Image restoration: denoising, deblurring, super-resolution and other jobs that turn images into better ones."""
