"""The tests: real processes on real sockets."""
