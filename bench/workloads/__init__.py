"""The workloads; each module registers its own when it is imported."""
