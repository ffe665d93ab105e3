"""Rows -> events: what replay and text/csv bodies share, whatever the file or body is."""
