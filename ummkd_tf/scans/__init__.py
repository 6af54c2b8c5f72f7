"""Scans as they come: reading, geometry, and the way to the network's grid and back."""
