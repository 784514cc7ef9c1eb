"""The edge to the API server: reads, writes, the lease. It carries out what `plan` decided."""
