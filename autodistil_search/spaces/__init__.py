"""Internal: search spaces, their subnets and sub-spaces, and the cost formulas of subnets."""
