"""What a run leaves behind, and who may write it: folder, lock, control, status, recorder, scalars, curves, a view."""
