"""Search engines: each asks for subnets and is told their values."""
