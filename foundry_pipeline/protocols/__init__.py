"""One module per endpoint protocol: how a data row becomes a request, and a response an outcome."""
