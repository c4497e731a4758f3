"""Recipes, one YAML a system, and their loader."""
