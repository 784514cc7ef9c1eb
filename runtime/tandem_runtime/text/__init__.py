"""Between strings and token ids: tokenizer, chat templates, incremental detokenization, stop strings, reasoning.

Pure text work on the API process; no HTTP, no torch.
"""
