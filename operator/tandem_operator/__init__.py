"""The Kubernetes operator: observes an InferenceService's children, plans what they should be, applies it, reports.

Here belong the reconcile loop, its pure planners and the manifests of children. Not here: anything that runs inside
a pod it creates (`tandem_gateway`, `tandem_fetch`, `tandem_runtime`), and torch.
"""
