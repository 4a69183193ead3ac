"""Models that leave this program: export to other runtimes, smaller and faster ones, and proof that they agree."""
