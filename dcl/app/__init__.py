"""What people use: the command, the run folder, the report, the estimator."""
