"""Internal: the report of a run, as data and as page, figures and tables."""
