"""HTTP header names that Tandem's own parts exchange."""

REQUEST_ID = "X-Request-Id"
"""One id through client, gateway, decode and prefill; generated where absent."""
TICKET = "X-Tandem-Ticket"
"""Signed permissions to use a prefill pod (see `ticket`), comma-separated: the preferred pod, then one for failover.

Always stripped from clients."""
SIGNATURE = "X-Tandem-Signature"
"""Signature of a handoff control message (`ticket.sign_message`), or of a request for a live stream."""
STREAM = "X-Tandem-Stream"
"""`live` or `resume`, from a gateway only (see `live_stream`)."""
PODS = "X-Tandem-Pods"
"""Answer header of the gateway: `decode=POD; prefill=POD`, by name."""
TIMING = "X-Tandem-Timing"
"""Request header; when `1` the final chunk or body carries a `tandem` object (see `handoff.RequestTrace`)."""

INTERNAL_PREFIX = "x-tandem-"
"""The gateway strips every client header with this prefix except `TIMING`."""
