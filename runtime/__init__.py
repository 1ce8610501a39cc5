"""The rootless container runtime: nothing here yet."""
