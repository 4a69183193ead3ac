"""What is measured, and how: one module a page of docs/benchmarks. `python -m benchmarks.NAME`."""
