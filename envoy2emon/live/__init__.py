"""The live page for a display on the wall."""
