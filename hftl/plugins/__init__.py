"""Finding plugins, loading them guarded, and naming what they give."""
