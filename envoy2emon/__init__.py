"""Carries an Enphase gateway's readings to EmonCMS."""

__version__ = "1.1.0"
