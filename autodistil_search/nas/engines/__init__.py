"""Internal: search engines, which ask for subnets and are told their values."""
