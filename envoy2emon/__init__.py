"""Carries an Enphase Envoy's readings into EmonCMS."""

__version__ = "1.0.0"
