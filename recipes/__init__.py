"""Recipes: commented YAML files by method, and the launcher `unimodal_ar.recipes.train`."""
