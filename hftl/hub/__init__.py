"""Talking to the Hub; nothing here knows a model."""
