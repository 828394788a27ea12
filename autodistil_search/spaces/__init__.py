"""Internal: search spaces, their subnets and sub-spaces, and what a subnet costs by formula."""
