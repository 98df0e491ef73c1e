"""The ledger, the leases and the rates in PostgreSQL, for several machines. Needs the extra `postgres`.

`calls/ledgers.py`, a level up, is the way in.
"""
