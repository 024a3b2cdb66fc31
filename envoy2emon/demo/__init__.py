"""`envoy2emon demo`: simulated neighbours, which the tests use too."""
