"""What all folders may use: checkpoints, metrics, plots, logs, seeds, the folder of a run."""
