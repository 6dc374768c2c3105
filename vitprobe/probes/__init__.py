"""Measure: one file a measurement, pure functions -> accumulator -> frozen result. Probes never draw."""
