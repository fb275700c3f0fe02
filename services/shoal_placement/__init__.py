"""Placement: owns a cell's nodes and slots. Hears requests, executors and freed slots; says starts and destroys."""
