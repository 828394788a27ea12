"""Internal: search engines, which ask for subnets and receive their values."""
