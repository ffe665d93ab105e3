"""Bodies to events: JSON, NDJSON, Arrow."""
