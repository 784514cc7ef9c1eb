"""A fleet on one machine: `tandem up` and `tandem demo` start gateway, prefill and decode processes and watch them.

Finds or fetches the model, picks ports, supervises. Serving itself is the processes' business.
"""
