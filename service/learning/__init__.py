"""The one writer and the models that it trains."""
