"""The `tandem` command: parses the subcommand and hands over to its package, importing nothing else before.

No logic of its own, so that the operator image (without torch) has the same CLI.
"""
