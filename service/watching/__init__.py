"""Monitoring: metrics, series, live streams, the page."""
