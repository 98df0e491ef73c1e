"""A few rows before paying for all: which ones, what the model says of them, and what the whole run would take."""
