"""What scores are worth: operating points, intervals, calibration, subgroups, comparisons, the report."""
