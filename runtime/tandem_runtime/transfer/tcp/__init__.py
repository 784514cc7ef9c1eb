"""The default transport: one TCP connection for each pair of ranks and job, on one thread per receiver and per sender.

Payloads go straight from page views to the socket and back; nothing here buffers more than one frame header.
"""

from tandem_runtime.transfer.tcp.receiver import TcpReceiver
from tandem_runtime.transfer.tcp.sender import TcpSender

__all__ = ["TcpReceiver", "TcpSender"]
