"""Internal: objectives, proxies, engines, the archive of evaluations, and baselines."""
