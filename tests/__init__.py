"""Tests. A package, so that `tests` never means one that something else has installed."""
