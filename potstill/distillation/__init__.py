"""Distillation: the outer loop, and runs on disk."""
