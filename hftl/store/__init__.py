"""From rows to stored features."""
