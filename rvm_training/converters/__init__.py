"""Public datasets as they are distributed to the folders that the benchmarks read: one file a format."""
