"""Train, score and use image classifiers."""
