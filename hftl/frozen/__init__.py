"""The frozen path: from rows to stored features to a trained head."""
