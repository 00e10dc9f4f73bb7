"""Evaluation: fresh networks trained on a set and tested."""
