"""``report.html``: a run as one page that a person reads, sends and prints.

`collect` keeps what only the living run knows, `figures` draws, `page` puts it together from the run's folder alone.
"""
