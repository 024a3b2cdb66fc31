"""`envoy2emon check`: every question that a puzzled owner has."""
