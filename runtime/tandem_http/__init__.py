"""What all HTTP servers of Tandem share below their handlers: connections, bodies, writes.

Here belongs what protects any aiohttp server from its clients. Here does not belong what a request means, nor anything
of torch.
"""
