"""The Kubernetes operator: one InferenceService becomes StatefulSets, a gateway and what they need.

`api` is the resource's schema, `plan` and `status` decide on values, `observe`, `apply` and `main` do the I/O.
Nothing here routes requests, runs a model or imports torch; what pods understand comes from `tandem_contract`.
"""
