"""What doctor.py finds: findings in order of weight, and checks of machine, memory, disk and versions."""
