"""Short training runs whose results a change of form must leave equal to the last bit; see runs.py."""
