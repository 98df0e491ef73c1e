"""Calling an endpoint: the rate and breaker all processes share, the ledger, one request, whose fault a failure is.

`invoke.py`, a level up, is the way in.
"""
