"""Train any task: engine, recipe, optimizers, checkpoints, run folder."""
