"""From a trained head to files that others load."""
