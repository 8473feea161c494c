"""The recipe of a run: its fields, defaults and presets."""
