"""The files of a run and who may write them: lock, control file, status, step figures, and a view for readers."""
