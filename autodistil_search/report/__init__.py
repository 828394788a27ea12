"""Internal: the report of a run as data, then as page, figures and tables."""
