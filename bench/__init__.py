"""Benchmarks: the union and its peers, on the same work, in one run.

``peers`` says what can be mounted here, ``workload`` what can be measured,
``run`` takes them in turns, each time on a fresh mount made by ``stage`` in
namespaces of its own, and ``record`` is what is left of a run. ``table``,
``html`` and ``compare`` are made from the record alone.
"""
