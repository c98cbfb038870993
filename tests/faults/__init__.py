"""Faults: what dies, fills up, gets damaged or runs twice, and what must hold afterwards."""
