"""The router in front of prefill and decode pods: picks pods, signs tickets, relays answers byte for byte.

Here belong routing, pod health, endpoint discovery and the OpenAI-facing proxy. Here does not belong anything
that knows tokens or models (`tandem_runtime`), nor how pods come to be (`tandem_operator`).
"""
