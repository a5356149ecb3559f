"""Measurements: one fresh process per block."""
