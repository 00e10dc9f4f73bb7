"""The distilled set: its examples, its file, its pictures and exports."""
