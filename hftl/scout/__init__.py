"""Questions about a transfer, answered on stored features: which backbone, how deep, is it real, how much data."""
