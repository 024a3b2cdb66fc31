"""`envoy2emon demo`: a simulated gateway and a stand-in for EmonCMS, which the tests use too."""
