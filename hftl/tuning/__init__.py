"""Hyperparameters by trials: what may be tried, the study on disk, one trial, the choice and what it is worth."""
