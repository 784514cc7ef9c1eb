"""The page at /ui: a chat with the model, and a live view of the pods behind this gateway.

Plain files and one JSON document; the page calls the same API as every client, with the key its user types in.
No build step, no foreign hosts, nothing kept in the browser.
"""
