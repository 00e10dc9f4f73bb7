"""Diagnosis: how noisy a run's gradient is."""
