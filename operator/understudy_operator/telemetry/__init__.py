"""From Prometheus to arrays: the port, the queries people really use, and the join to policies."""
