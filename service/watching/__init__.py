"""What people and programs look at: metrics, series, streams of news, the page."""
