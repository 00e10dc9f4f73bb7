"""The functions of `import potstill`."""
