"""Features that travel: a space handed on, and one taken in from elsewhere."""
