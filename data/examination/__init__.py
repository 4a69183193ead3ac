"""What is wrong with data, or worth knowing of them, before a training: for doctor.py and doctor.json."""
