"""Internal: documents of every source, and blocks of tokens from a store or a stream."""
