"""Answers over HTTP: networks, requests in batches, the page at /."""
