"""The demo's HTTP endpoint: the document's protocol in front of `demo.models`.

`answers` is the protocol without a socket, `server` the socket, `__main__` the command line.
"""
