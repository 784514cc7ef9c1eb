"""A throwaway Kubernetes of real parts on this machine: its plan, configuration, network, processes and images.

Standard library only, so that `e2e/cluster` runs before anything is installed. What is deployed on the cluster
and what is asserted about it belongs in `e2e/tests`.
"""
