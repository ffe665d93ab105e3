"""Decodes request bodies into events: JSON, NDJSON, Arrow."""
