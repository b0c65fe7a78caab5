"""Measurements of the whole chain on one machine; README.md says what each number means."""
