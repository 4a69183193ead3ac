"""Settings: their definition, loading, presets; and the family of errors."""
