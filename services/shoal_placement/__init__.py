"""Placement: owns a cell's nodes and their slots. Hears requests, executors and freed slots; says starts and destroys."""
