"""The one writer, and the models that it steps."""
