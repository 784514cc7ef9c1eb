"""`tandem bench serve`: load on any OpenAI endpoint, and its throughput and latencies under an SLO.

`metrics`, `slo`, `planner`, `sse`, `timeline` and `workload` are pure; `client`, `load` and `session` do the I/O.
"""
