"""Shoal"""
