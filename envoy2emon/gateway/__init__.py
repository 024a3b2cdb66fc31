"""The Enphase gateway (Envoy, IQ Gateway): from its bytes to readings."""
