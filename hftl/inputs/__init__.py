"""What a person hands to a trained model, as rows that stream by, read as the model was trained to read."""
