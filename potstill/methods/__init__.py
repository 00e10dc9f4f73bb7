"""Distillation methods: one file a method or close family."""
