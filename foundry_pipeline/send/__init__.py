"""Exports to the annotation platform: what is to be sent, the platform's API, and what it said of every line.

Nothing here runs by itself: a person asks for it, `foundry-pipeline send`.
"""
