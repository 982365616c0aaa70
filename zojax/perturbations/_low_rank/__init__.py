"""Directions of low rank."""
