"""Benchmarks of the union against its peers: nothing here yet."""
