"""Training: losses, optimizers, schedules, precision, the loop. `training.builder` reads the config."""
