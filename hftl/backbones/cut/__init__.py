"""Where a model is cut at its frozen frontier, and the proof that the cut replays it."""
