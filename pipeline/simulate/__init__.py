"""Simulated EnMAP products: believable scenes in DLR's file layout, with the truth beside them."""

from .api import SimulatedProduct, simulate_catalog, simulate_scene
from .bands import BandTable, operational

__all__ = ["BandTable", "SimulatedProduct", "operational", "simulate_catalog", "simulate_scene"]
