"""What is on disk: the log, snapshots, series."""
