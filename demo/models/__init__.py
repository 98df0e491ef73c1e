"""The demo's real models: a picture or a text -> the document's reply, keyed by feature name.

Each module owns one model: what goes in, how its numbers are read, what it answers. Transport is `demo.endpoint`.
"""
