"""Draw results: one file of displays a probe. Displays never compute."""
