"""The configuration: options that parts declare, slots that parts fill, files and presets."""
