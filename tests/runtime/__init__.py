"""Tests of pyrun; they mirror runtime/."""
