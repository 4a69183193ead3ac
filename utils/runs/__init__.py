"""What a run leaves behind: its folder, its recorder, TensorBoard scalars, curves."""
